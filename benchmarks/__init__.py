"""`kservekit bench`: our server beside stock kserve.ModelServer, Triton itself and a bare hop, on this machine."""
