"""Other engines read Tarn's lake at the versions that /api/snapshot names.  python read_lake.py BASE_URL [CUSTOMER]
(deltalake 1.6, duckdb 2.0, pylance 14.0)"""

import json
import sys
import urllib.request

import duckdb
import lance
from deltalake import DeltaTable

customer = sys.argv[2] if len(sys.argv) > 2 else "default"
with urllib.request.urlopen(f"{sys.argv[1]}/api/snapshot?customer_id={customer}") as answer:
    snapshot = json.load(answer)
path, pins = snapshot["path"], snapshot["pins"]
documents = DeltaTable(f"{path}/delta/general_documents", version=pins["general_documents"]).to_pyarrow_table()
chunks = DeltaTable(f"{path}/delta/general_chunks", version=pins["general_chunks"]).to_pyarrow_table()
vectors = lance.dataset(f"{path}/lance/embeddings.lance", version=pins["embeddings"]).to_table()
assert sum(documents["chunk_count"].to_pylist()) == chunks.num_rows == vectors.num_rows
assert sorted(chunks["chunk_id"].to_pylist()) == sorted(vectors["chunk_id"].to_pylist())
assert set(chunks["ingest_id"].to_pylist()) <= set(documents["ingest_id"].to_pylist())
listed = duckdb.sql("select d.name, count(*) from documents d join chunks c using (ingest_id) group by 1 order by 1").fetchall()
assert sum(count for _, count in listed) == chunks.num_rows
print(f"deltalake, duckdb and pylance agree: {documents.num_rows} documents, {chunks.num_rows} chunks and vectors")
