"""Ray Serve's configuration in the manifest of a RayService: what Ray Serve itself says about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kube.test_service import RUN, rendered, serve_config


def test_ray_serve_accepts_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ray.serve.schema import ServeDeploySchema

    service = rendered(tmp_path, capsys, RUN, "--max-replicas", "3")
    config = serve_config(service)
    ServeDeploySchema.model_validate(config)
    config["applications"][0]["deployments"][1]["num_replicas"] = -3  # the control
    with pytest.raises(ValueError, match="num_replicas"):
        ServeDeploySchema.model_validate(config)


def test_the_application_can_be_built_from_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its arguments are those of the builder, and its deployments have the names that the manifest configures."""
    from importlib import import_module

    (application,) = serve_config(rendered(tmp_path, capsys, RUN))["applications"]
    module, _, builder = application["import_path"].partition(":")
    built = getattr(import_module(module), builder)(application["args"])
    http = built._bound_deployment
    (models,) = http.init_args
    names = [http.name, models._bound_deployment.name]
    assert names == [one["name"] for one in application["deployments"]]
