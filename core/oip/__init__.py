"""Clients for Triton, or for any server of the Open Inference Protocol or KServe's v1."""

from kservekit.oip.backend import Backend, connect

__all__ = ["Backend", "connect"]
