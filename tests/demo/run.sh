#!/usr/bin/env bash
# The main job, shown: ingest the demo catalogue, serve it, ask one question, print the cited answer, leave the
# server up. run.sh TARN_BINARY; TARN_LISTEN and TARN_LAKE change where.
set -euo pipefail
tarn=$1
here=$(cd "$(dirname "$0")/../.." && pwd)
export TARN_MODEL="${TARN_MODEL:-HuggingFaceTB/SmolLM2-135M-Instruct-GGUF}"
export TARN_EMBEDDER="${TARN_EMBEDDER:-sentence-transformers/all-MiniLM-L6-v2}"
# A 135M model loses too much to 4-bit weights with 8-bit activations; half floats keep what it knows.
export TARN_DTYPE="${TARN_DTYPE:-f16}"
export TARN_LAKE="${TARN_LAKE:-$here/.tarn/lake}"
export TARN_LISTEN="${TARN_LISTEN:-127.0.0.1:9300}"
question="${QUESTION:-What is the rated current of the NV-MCB-3P-C16 circuit breaker?}"
url="http://$TARN_LISTEN"

mkdir -p "$TARN_LAKE"
"$tarn" ingest "$here/tests/fixtures/demo/corpus"

"$tarn" serve &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null' EXIT INT TERM
for _ in $(seq 300); do
  curl -fsS "$url/ready" >/dev/null 2>&1 && break
  kill -0 $server 2>/dev/null || { echo "the server stopped; its messages are above" >&2; exit 1; }
  sleep 0.2
done

echo
echo "Q: $question"
# Two passages: a 135M model mixes up the numbers of more.
curl -fsS "$url/v1/rag/query" -H 'content-type: application/json' \
  -d "$(python3 -c 'import json,sys; print(json.dumps({"query": sys.argv[1], "top_k": 2, "max_tokens": 128}))' "$question")" |
  python3 -c '
import json, sys
reply = json.load(sys.stdin)
print("A:", reply["answer"].strip())
for c in reply["citations"]:
    print("   [%s] %s: \"%s\"" % (c.get("marker", "-"), c["name"], " ".join(c["quote"].split())[:160]))
'
echo
echo "Tarn is up at $url (stop it with Ctrl-C). Try:"
echo "  curl $url/v1/chat/completions -H 'content-type: application/json' -d '{\"model\": \"$TARN_MODEL\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'"
[ -n "${DEMO_ONCE:-}" ] || wait $server
