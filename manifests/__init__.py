"""Manifests as data (kustomize), what a cluster would hold them against, and the rules that no schema knows."""
