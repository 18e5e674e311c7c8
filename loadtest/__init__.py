"""Load tests that give a verdict. Pure but for the files named in setup.cfg, which alone import locust and gevent."""
