//! All that is served.

/// What a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Carries {
    Nothing,
    /// JSON of the schema of that name.
    Json(&'static str),
    /// A form with files.
    Files,
}

/// What a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// JSON of the schema of that name.
    Json(&'static str),
    /// The same, or with `stream` server-sent events.
    JsonOrEvents(&'static str),
    Text,
    /// The bytes of a document, in its own media type.
    Bytes,
}

/// A path and a method.
#[derive(Debug, Clone, Copy)]
pub(in crate::server) struct Operation {
    pub(in crate::server) path: &'static str,
    pub(in crate::server) method: &'static str,
    pub(super) summary: &'static str,
    pub(in crate::server) carries: Carries,
    pub(super) answers: Answers,
    /// The status of a good answer.
    pub(super) good: u16,
    /// Names of parameters in the query.
    pub(super) query: &'static [&'static str],
    /// Whether it is for a customer, and so takes its name.
    pub(super) customer: bool,
    /// Whether it asks for a key where keys are set.
    pub(super) guarded: bool,
    /// Statuses that do not follow from the above.
    pub(super) statuses: &'static [u16],
}

impl Operation {
    const fn get(path: &'static str, summary: &'static str, answer: &'static str) -> Operation {
        Operation {
            path,
            method: "get",
            summary,
            carries: Carries::Nothing,
            answers: Answers::Json(answer),
            good: 200,
            query: &[],
            customer: false,
            guarded: true,
            statuses: &[],
        }
    }

    const fn post(
        path: &'static str,
        summary: &'static str,
        body: &'static str,
        answer: &'static str,
    ) -> Operation {
        Operation { method: "post", carries: Carries::Json(body), ..Operation::get(path, summary, answer) }
    }

    const fn delete(path: &'static str, summary: &'static str, answer: &'static str) -> Operation {
        Operation { method: "delete", ..Operation::get(path, summary, answer) }
    }

    const fn of_customer(self) -> Operation {
        Operation { customer: true, ..self }
    }

    const fn open(self) -> Operation {
        Operation { guarded: false, ..self }
    }

    const fn query(self, query: &'static [&'static str]) -> Operation {
        Operation { query, ..self }
    }

    const fn answers(self, answers: Answers) -> Operation {
        Operation { answers, ..self }
    }

    const fn fails(self, statuses: &'static [u16]) -> Operation {
        Operation { statuses, ..self }
    }

    /// Every status that it may answer, in order.
    pub(super) fn all_statuses(&self) -> Vec<u16> {
        let mut all = vec![self.good, 405, 500];
        all.extend(self.statuses);
        if self.customer || !self.query.is_empty() || self.path.contains('{') {
            all.push(400);
        }
        match self.carries {
            Carries::Nothing => {}
            Carries::Json(_) => all.extend([400, 413, 415]),
            Carries::Files => all.extend([400, 413]),
        }
        if self.guarded {
            all.push(401);
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The engine's: unknown model, full queue, a server that stops.
const GENERATES: &[u16] = &[404, 429, 503];
/// A lake's past: no such version, no longer there.
const AS_OF: &[u16] = &[404, 410];

pub(in crate::server) const OPERATIONS: &[Operation] = &[
    Operation::get("/v1/models", "Models that are served", "ModelList"),
    Operation::get("/v1/models/{id}", "One model", "Model").fails(&[404]),
    Operation::post("/v1/completions", "Continue prompts", "CompletionRequest", "Completion")
        .of_customer()
        .answers(Answers::JsonOrEvents("Completion"))
        .fails(GENERATES),
    Operation::post(
        "/v1/chat/completions",
        "Answer a conversation",
        "ChatCompletionRequest",
        "ChatCompletion",
    )
    .of_customer()
    .answers(Answers::JsonOrEvents("ChatCompletion"))
    .fails(GENERATES),
    Operation::post(
        "/v1/responses",
        "Answer, and keep the answer to go on from",
        "ResponseRequest",
        "Response",
    )
    .of_customer()
    .answers(Answers::JsonOrEvents("Response"))
    .fails(GENERATES),
    Operation::get("/v1/responses/{response_id}", "A response that was kept", "Response")
        .of_customer()
        .query(&["stream"])
        .fails(&[404]),
    Operation::delete("/v1/responses/{response_id}", "Forget a response", "DeletedResponse")
        .of_customer()
        .fails(&[404]),
    Operation::post("/v1/rerank", "Documents by how well they answer", "RerankRequest", "Reranked")
        .fails(&[404, 503]),
    Operation::post("/v2/rerank", "The same, at Cohere's path", "RerankRequest", "Reranked")
        .fails(&[404, 503]),
    Operation::post("/rerank", "The same, at Jina's path", "RerankRequest", "Reranked").fails(&[404, 503]),
    Operation::post("/v1/score", "Scores of pairs of texts", "ScoreRequest", "Scores").fails(&[404, 503]),
    Operation::post("/score", "The same", "ScoreRequest", "Scores").fails(&[404, 503]),
    Operation::post("/v1/embeddings", "Vectors of texts", "EmbeddingRequest", "EmbeddingList")
        .fails(&[404, 503]),
    Operation::post("/v1/load_lora_adapter", "Make an adapter a model", "LoadAdapterRequest", "")
        .answers(Answers::Text)
        .fails(&[403, 404, 429]),
    Operation::post("/v1/unload_lora_adapter", "Forget an adapter", "UnloadAdapterRequest", "")
        .answers(Answers::Text)
        .fails(&[403, 404]),
    Operation::post("/tokenize", "Token ids of a text or a conversation", "TokenizeRequest", "Tokens")
        .fails(&[404]),
    Operation::post("/detokenize", "The text of token ids", "DetokenizeRequest", "Text").fails(&[404]),
    Operation::post("/v1/rag/query", "Retrieve, answer and cite", "RagRequest", "Answer")
        .of_customer()
        .answers(Answers::JsonOrEvents("Answer"))
        .fails(&[404, 409, 410, 429, 503]),
    Operation {
        carries: Carries::Files,
        good: 202,
        ..Operation::post("/api/upload/files", "Upload documents", "", "UploadAccepted").of_customer()
    },
    Operation::get("/api/jobs/{job_id}", "How far a job is", "Job").of_customer().fails(&[404]),
    Operation::get("/api/documents", "Documents, newest first", "DocumentList")
        .of_customer()
        .query(&["limit", "offset", "as_of"])
        .fails(AS_OF),
    Operation::get("/api/documents/{document_id}", "One document", "Document").of_customer().fails(&[404]),
    Operation::delete(
        "/api/documents/{document_id}",
        "Delete a document and the files inside it",
        "DeletedDocument",
    )
    .of_customer()
    .fails(&[404]),
    Operation::get("/api/documents/{document_id}/content", "The bytes of a document", "")
        .answers(Answers::Bytes)
        .of_customer()
        .fails(&[404]),
    Operation::get("/api/documents/{document_id}/chunks/{chunk_id}", "One chunk", "Chunk")
        .of_customer()
        .fails(&[404]),
    Operation::get("/api/snapshot", "The table versions that belong together", "Snapshot")
        .of_customer()
        .query(&["as_of"])
        .fails(AS_OF),
    Operation::get("/delta/tables", "Delta tables", "Tables").of_customer(),
    Operation::get("/delta/schema/{table}", "A table's schema", "TableSchema").of_customer().fails(&[404]),
    Operation::get("/delta/query/{table}", "Rows of a table", "TableRows")
        .of_customer()
        .query(&["limit", "offset", "columns", "filter", "version"])
        .fails(AS_OF),
    Operation::get("/lance/datasets", "Lance datasets", "Datasets").of_customer(),
    Operation::get("/lance/query/{dataset}", "Rows of a Lance dataset", "DatasetRows")
        .of_customer()
        .query(&["limit", "offset", "columns", "filter", "version"])
        .fails(AS_OF),
    Operation::get("/stats", "What the lake holds", "Stats").of_customer(),
    Operation::get("/health", "Alive; never touches storage", "Health").open(),
    Operation::get("/ready", "Models loaded, not stopping", "Ready").open().fails(&[503]),
    Operation::get("/metrics", "Prometheus metrics", "").open().answers(Answers::Text),
    Operation::get("/version", "Tarn's version", "Version").open(),
    Operation::get("/openapi.json", "This document", "Any").open(),
];
