"""OpenAPI: the document is valid, names every address there is, and a server under generated requests keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from aimass_lab.serving.launch import Server, start

from .servers import WEIGHT, call, infer, linear_onnx, tensor, write_bundle

TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that cannot overflow, whatever 32-bit floats it gets: then every 500 is the server's."""
    weight = WEIGHT / (2 * np.abs(WEIGHT).sum())
    x = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    signature = [tensor("x", "FP32", -1, 4)], [tensor("y", "FP32", -1, 3)]
    with start(write_bundle(tmp_path_factory.mktemp("calm") / "bundle", linear_onnx(weight), *signature, {"input.x": x, "output.y": x @ weight})) as server:
        yield server
        assert server.exit_code is None, server.log


def document(server: Server) -> Any:
    answer = call(server, "GET", "/openapi.json", None, TOKEN)
    assert answer.status == 200, answer.body
    return answer.json


def schema_of(described: Any, path: str, status: str) -> dict[str, Any]:
    found = described["paths"][path]["post"]["responses"][status]["content"]["application/json"]["schema"]
    return {**found, "components": described["components"]}


@pytest.mark.parametrize("name", ["linear", "identity", "guarded"])
def test_the_document_is_valid(name: str, request: pytest.FixtureRequest) -> None:
    validate(document(request.getfixturevalue(name)))


def test_every_address_in_it_is_there(linear: Server) -> None:
    for path, item in document(linear)["paths"].items():
        for method in item:
            answer = call(linear, method.upper(), path.replace("{name}", "net"), {} if method == "post" else None)
            assert str(answer.status) in item[method]["responses"], (path, answer.body)
            assert answer.status not in (404, 405), path


def test_the_signature_is_in_it(linear: Server) -> None:
    described = document(linear)
    (tensor,) = [described["components"]["schemas"]["net_1_request"]["properties"]["inputs"]["items"]]
    assert (tensor["properties"]["name"], tensor["properties"]["datatype"]) == ({"const": "x"}, {"const": "FP32"})
    assert tensor["properties"]["shape"]["prefixItems"] == [{"type": "integer", "minimum": 1, "maximum": 16}, {"const": 4}]
    answer = infer(linear, [[1.0, 2.0, 3.0, 4.0]], id="a").json
    jsonschema.validate(answer, schema_of(described, "/v2/models/net/infer", "200"))
    answer["outputs"][0]["datatype"] = "FP64"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer, schema_of(described, "/v2/models/net/infer", "200"))


def test_tokens_are_in_it_where_they_are_asked_for(linear: Server, guarded: Server) -> None:
    assert document(linear)["security"] == []
    described = document(guarded)
    assert described["security"] == [{"bearer": []}]
    assert "401" in described["paths"]["/v2/models/net/infer"]["post"]["responses"]
    assert described["paths"]["/v2/health/live"]["get"]["security"] == []
    assert call(guarded, "GET", "/openapi.json").status == 401


CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.ignored_auth,
]
"""Not the check that data which fit the schema are accepted: that a tensor holds what its shape says is no rule a schema can express."""


@pytest.mark.parametrize("name", ["calm", "identity", "guarded"])
def test_generated_requests_get_documented_answers(name: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name)
    schema = schemathesis.openapi.from_dict(document(server))
    modes = list(schemathesis.GenerationMode)
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=modes[0]) | operation.as_strategy(generation_mode=modes[1]))
        def ask(case: Any) -> None:
            case.call_and_validate(base_url=server.url, headers=TOKEN if name == "guarded" else None, checks=CHECKS)

        ask()


def test_what_fits_the_plain_form_is_computed(calm: Server) -> None:
    """The plain form has no rule between its fields, so its schema is exact: what fits is accepted."""
    operation = schemathesis.openapi.from_dict(document(calm))["/predict"]["POST"]

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    def ask(case: Any) -> None:
        response = case.call(base_url=calm.url)
        assert response.status_code == 200, response.content

    ask()
