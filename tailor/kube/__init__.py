"""Kubernetes: writes KubeRay manifests from a recipe and a cluster file. Imports pydantic and yaml only."""
