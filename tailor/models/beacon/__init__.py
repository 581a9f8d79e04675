"""Activation beacons (Zhang et al. 2024, arXiv 2401.03462): compressed keys and values of earlier windows."""
