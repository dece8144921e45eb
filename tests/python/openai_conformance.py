"""Requests of all kinds against a running Tarn, from its own description and from OpenAI's, by `schemathesis`.

    python openai_conformance.py BASE_URL [--openai openapi.yaml.gz] [--examples N]     (schemathesis 4.32, PyYAML)

No answer may be a 5xx, and every status, content type and body must be described. Descriptions are changed in three ways
before they are used: models, tables and documents are those that exist (and one that does not), so that requests get
past the first check; answers are short; and OpenAI's, which describes hardly any refusal, and one without the
`error` around it that its clients expect, gets every 4xx in its error shape.
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import yaml

OURS = ["/completions", "/chat/completions", "/embeddings", "/models", "/models/{model}", "/responses", "/responses/{response_id}"]
SHORT = {"max_tokens": 6, "max_completion_tokens": 6, "max_output_tokens": 6, "n": 2, "best_of": 2}
GENERATING = {"CompletionRequest": "max_tokens", "ChatCompletionRequest": "max_tokens", "ResponseRequest": "max_output_tokens",
              "CreateCompletionRequest": "max_tokens", "CreateChatCompletionRequest": "max_completion_tokens",
              "CreateResponse": "max_output_tokens", "RagRequest": "max_tokens"}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message", "type", "param", "code"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"},
        "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}}


def get(url):
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def known(base):
    """Names that exist, by the parameter or property that takes them."""
    models = [model["id"] for model in get(base + "/v1/models")["data"]]
    documents = [one["document_id"] for one in get(base + "/api/documents?limit=2")["documents"]]
    rows = get(base + "/delta/query/general_chunks?limit=2&columns=chunk_id")["rows"] if documents else []
    return {
        "model": models, "id": models, "document_id": documents, "chunk_id": [row["chunk_id"] for row in rows],
        "table": get(base + "/delta/tables")["tables"], "dataset": get(base + "/lance/datasets")["datasets"],
    }


def generating(schema, field):
    """Makes `schema`, or each of the schemas that it is all of, one of short answers."""
    for part in [schema, *schema.get("allOf", [])]:
        properties = part.get("properties", {})
        for name, most in SHORT.items():
            if name in properties or name == field:
                if "properties" in part:
                    properties[name] = {"type": "integer", "minimum": 0, "maximum": most}
        # No response has a name that could be guessed.
        part.get("properties", {}).pop("previous_response_id", None)
    schema["required"] = sorted({*schema.get("required", []), field})


def patch(document, names):
    for name, schema in document["components"]["schemas"].items():
        if name in GENERATING:
            generating(schema, GENERATING[name])
        for part in [schema, *[one for one in schema.get("allOf", []) if isinstance(one, dict)]]:
            if "model" in part.get("properties", {}) and (name.endswith("Request") or name in GENERATING):
                part["properties"]["model"] = {"type": "string", "enum": names["model"] + ["nobody"]}
    for path, item in document["paths"].items():
        for operation in item.values():
            for parameter in operation.get("parameters", []) if isinstance(operation, dict) else []:
                if parameter.get("in") == "path" and names.get(parameter["name"]):
                    parameter["schema"] = {"type": "string", "enum": names[parameter["name"]] + ["nobody"]}


def own(base):
    document = get(base + "/openapi.json")
    patch(document, known(base))
    return document, base


def openais(base, file):
    document = yaml.load(gzip.open(file, "rt", encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    document["paths"] = {path: document["paths"][path] for path in OURS}
    refusal = {"description": "A refusal", "content": {"application/json": {"schema": ERROR}}}
    for path, item in document["paths"].items():
        # Kept chats, and fine-tuned models to delete, are no part of Tarn.
        for method in [m for m in item if (path, m) in [("/chat/completions", "get"), ("/models/{model}", "delete")]]:
            del item[method]
        for operation in item.values():
            described = operation["responses"]
            operation["responses"] = {status: one for status, one in described.items() if not status.startswith("4")}
            operation["responses"]["4XX"] = refusal
    document.pop("webhooks", None)
    document["servers"] = [{"url": base + "/v1"}]
    patch(document, known(base))
    return document, base + "/v1"


def run(name, document, base, examples, more):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, name + ".json")
        file.write_text(json.dumps(document, default=str))
        command = [
            str(pathlib.Path(sys.executable).with_name("schemathesis")), "run", str(file), "--url", base,
            "--max-examples", str(examples), "--phases", "coverage,fuzzing", "--request-timeout", "120",
            "--continue-on-failure", "--no-color", "--suppress-health-check", "all", "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance", *more,
        ]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("base")
    arguments.add_argument("--openai")
    arguments.add_argument("--examples", type=int, default=20)
    asked, more = arguments.parse_known_args()
    base = asked.base.rstrip("/")
    failed = run("tarn", *own(base), asked.examples, more)
    if asked.openai:
        failed |= run("openai", *openais(base, asked.openai), asked.examples, more)
    sys.exit(failed)
