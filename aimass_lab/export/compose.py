"""Docker compose: the replicas on one machine, reachable from that machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError
from ..manifests.server import GRPC_PORT, HTTP_PORT, TOKEN_VARIABLE, command, probe_command
from ..records import ServingSpec, to_json
from ._workload import accelerator_resource, grace, is_gpu, startup_budget
from ._yaml import Said, dump
from .base import EXPORTERS, Exporter, provenance
from .json import SPEC_FILE

DIGEST_KEY = "x-aimass-spec-digest"
_MIB = 2**20


@EXPORTERS.register("compose")
@dataclass(frozen=True, kw_only=True)
class Compose(Exporter):
    """One service; every replica gets a port of its own on the loopback address."""

    port: int = 8000
    """First port for HTTP on this machine."""
    grpc_port: int = 9000
    """First port for gRPC on this machine."""
    build: bool = False
    """Build the image from the folder that the file lies in: the bundle's."""

    def write(self, spec: ServingSpec) -> dict[str, str]:
        """The compose file and the spec."""
        replicas = int(spec.replicas.value)
        if not (self.port > 0 and self.grpc_port > 0 and max(self.port, self.grpc_port) + replicas <= 65536 and abs(self.port - self.grpc_port) >= replicas):
            raise SpecError(f"ports from {self.port} and {self.grpc_port} do not do for {replicas} replicas each", help="choose two that are further apart")
        lines = [
            f"made from the resource spec aimass.dev/v1 of {spec.name}; behind each number stands where it comes from",
            f"{TOKEN_VARIABLE}=... docker compose up; nothing scales by itself here, and all replicas share this machine",
        ]
        document = {DIGEST_KEY: spec.digest, "name": spec.name, "services": {spec.name: self._service(spec)}}
        return {"compose.yaml": dump(document, lines), SPEC_FILE: to_json(spec) + "\n"}

    def _service(self, spec: ServingSpec) -> dict[str, Any]:
        program, arguments = command()
        seconds, why = startup_budget(spec)
        return {
            "image": spec.image,
            **({"build": "."} if self.build else {}),
            "command": [*program, *arguments],
            "environment": {TOKEN_VARIABLE: f"${{{TOKEN_VARIABLE}:?set the token that callers must show}}"},
            "ports": [_ports(self.port, spec, HTTP_PORT), _ports(self.grpc_port, spec, GRPC_PORT)],
            "healthcheck": {
                "test": ["CMD", *probe_command()],
                "interval": "10s",
                "timeout": "3s",
                "retries": 3,
                "start_period": Said(f"{math.ceil(seconds)}s", why),
            },
            "stop_grace_period": Said(f"{grace(spec).value}s", grace(spec).comment),
            "restart": "unless-stopped",
            "read_only": True,
            "tmpfs": ["/tmp"],
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "deploy": self._deploy(spec),
        }

    def _deploy(self, spec: ServingSpec) -> dict[str, Any]:
        memory = f"{math.ceil(spec.memory_bytes.value / _MIB)}M"
        reservations: dict[str, Any] = {
            "cpus": Said(f"{spec.cpu_cores.value:g}", provenance(spec.cpu_cores)),
            "memory": Said(memory, provenance(spec.memory_bytes)),
        }
        if spec.accelerators.value:
            if not is_gpu(spec):
                raise SpecError(f"compose hands out GPUs, and {spec.device} is none", help="write it for kubernetes, whose device plugins know others")
            vendor = accelerator_resource(spec).split(".")[0]
            count = Said(int(spec.accelerators.value), f"{spec.device}; {provenance(spec.accelerators)}")
            reservations["devices"] = [{"driver": vendor, "count": count, "capabilities": ["gpu"]}]
        return {
            "replicas": Said(int(spec.replicas.value), provenance(spec.replicas)),
            "resources": {"limits": {"memory": Said(memory, "as reserved")}, "reservations": reservations},
        }


def _ports(first: int, spec: ServingSpec, inside: int) -> Said:
    last = first + int(spec.replicas.value) - 1
    outside = str(first) if last == first else f"{first}-{last}"
    return Said(f"127.0.0.1:{outside}:{inside}", "one a replica, from this machine only")
