use super::*;
use crate::embed::EmbedThread;
use crate::engine::{AdapterError, EngineConfig, EngineThread, SamplingParams};
use crate::rag::fixture::hit;
use crate::rag::{Citing, GenerateError, GeneratorConfig, Mode};
use crate::testing::{FakeRunner, fake_embedder};

/// A model without a chat template and without adapters.
fn generator() -> (Generator, EngineThread, EmbedThread) {
    let (embed, embed_thread) = fake_embedder(8);
    let runner = FakeRunner::new(300, 256, 4096);
    let (engine, thread) = crate::engine::start(EngineConfig::default(), || Ok(runner)).expect("engine");
    let config = GeneratorConfig {
        name: "fake".to_owned(),
        eos: vec![],
        sampling: SamplingParams::greedy(),
        citing: Citing::Searched,
        tool_format: None,
    };
    (Generator::new(engine, embed.tokenizer().clone(), None, config), thread, embed_thread)
}

async fn ask(request: RagRequest, hits: Vec<ScoredChunk>) -> Result<Answer, RagError> {
    let (generator, _engine, _embed) = generator();
    let retrieval = Retrieval {
        hits,
        lake_version: 3,
        mode: Mode::Hybrid,
        warnings: vec!["old".to_owned()],
        timings: RetrieveTimings::default(),
    };
    let config = RagConfig::default();
    answer_from(Some(&generator), config, request, retrieval, Instant::now()).await?.collect().await
}

#[tokio::test]
async fn an_answer_says_who_wrote_it_and_from_what() {
    let request = RagRequest { max_tokens: Some(4), ..RagRequest::new("default", "What is a fuse?") };
    let answer = ask(request, vec![hit("a.txt", "A fuse melts.")]).await.expect("answers");
    assert!(answer.generated);
    assert_eq!((answer.model.as_deref(), answer.finish_reason), (Some("fake"), Some("length")));
    assert_eq!((answer.lake_version, answer.warnings.as_slice()), (3, &["old".to_owned()][..]));
    assert_eq!(answer.usage.completion_tokens, 4);
    assert!(answer.usage.prompt_tokens as usize > "A fuse melts.".len(), "the source is in the prompt");
}

#[tokio::test]
async fn an_adapter_that_is_asked_for_is_the_one_that_answers() {
    let adapter = Some(Arc::from("nobody"));
    let request = RagRequest { adapter, ..RagRequest::new("default", "What is a fuse?") };
    let refused = ask(request.clone(), vec![hit("a.txt", "A fuse melts.")]).await;
    let named = matches!(&refused, Err(RagError::Generate(GenerateError::Adapter(AdapterError::Unknown { name }))) if name == "nobody");
    assert!(named, "{refused:?}");
    let nothing = ask(request, Vec::new()).await.expect("no model is asked");
    assert_eq!((nothing.answer.as_deref(), nothing.generated), (Some(NOTHING_FOUND), false));
}

#[tokio::test]
async fn passages_alone_cost_no_token() {
    let request = RagRequest { generate: false, ..RagRequest::new("default", "What is a fuse?") };
    let answer = ask(request, vec![hit("a.txt", "A fuse melts.")]).await.expect("answers");
    assert_eq!((answer.answer, answer.generated, answer.usage), (None, false, RagUsage::default()));
    assert_eq!((answer.citations.len(), answer.citations[0].name.as_str()), (1, "a.txt"));
}
