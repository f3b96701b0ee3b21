"""An InferenceService of KServe, whose predictor is the engine's own container.

Source: KServe v0.20 (pkg/apis/serving/v1beta1/predictor.go:PredictorSpec, component.go:ComponentExtensionSpec,
pkg/constants/constants.go: `kserve-container`, the deployment mode `Standard`).
"""

from __future__ import annotations

from autofit.domain.plan import Plan
from autofit.render.container import commented, container_of
from autofit.render.kubernetes import pod_of
from autofit.render.yaml import dump

CONTAINER = "kserve-container"  #: what a predictor of one's own calls it


def render(plan: Plan) -> str:
    """The object, on Deployments: Knative would refuse the folders and the probes, and start a second pod beside the
    first.

    Raises:
        UsageError: no image is known.
    """
    container = container_of(plan)
    predictor = {
        "minReplicas": 1,
        "maxReplicas": 1,
        "deploymentStrategy": {"type": "Recreate"},  # two at once would need the GPU twice
        **pod_of(container, CONTAINER),
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": container.name, "annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        "spec": {"predictor": predictor},
    }
    return commented(plan, dump(service))
