//! The embed thread over fakes.

use super::*;
use crate::embed::InputKind;
use crate::embed::{Pair, RerankerInfo};
use crate::model::ScoreScale;
use crate::testing::{fake_embedder, fake_embedder_with_reranker};
use crate::text::EncoderInput;

#[tokio::test]
async fn vectors_come_in_the_order_of_the_texts_whatever_their_lengths() {
    let (handle, _thread) = fake_embedder(16);
    let texts: Vec<String> = (0..50).map(|at| "wort ".repeat(1 + at * 7 % 23) + &at.to_string()).collect();
    let all = handle.embed(InputKind::Passage, texts.clone(), Priority::Bulk).await.expect("embeds");
    for (text, vector) in texts.iter().zip(&all) {
        let alone = handle.embed(InputKind::Passage, vec![text.clone()], Priority::Interactive).await;
        assert_eq!(alone.expect("embeds")[0], *vector);
    }
    assert!(handle.embed(InputKind::Raw, Vec::new(), Priority::Bulk).await.expect("embeds").is_empty());
}

#[tokio::test]
async fn an_encoder_that_cannot_be_built_says_why() {
    let (handle, _thread) = fake_embedder(4);
    let failed =
        start(EmbedConfig { max_batch_tokens: 8 }, handle.tokenizer().clone(), handle.info().clone(), || {
            Err::<Encoder, _>("no weights".to_owned())
        });
    assert_eq!(failed.expect_err("fails").to_string(), "the embedder could not start: no weights");
}

/// Says by its vectors which way it was called.
struct Telltale;

impl PooledEncoder for Telltale {
    fn forward(&mut self, _: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        out.resize((cu_seqlens.len() - 1) * 4, 1.0);
        Ok(())
    }

    fn forward_bulk(&mut self, _: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        out.resize((cu_seqlens.len() - 1) * 4, 2.0);
        Ok(())
    }
}

#[tokio::test]
async fn only_bulk_jobs_make_way() {
    let (fake, _fake_thread) = fake_embedder(4);
    let config = EmbedConfig { max_batch_tokens: 8 };
    let (handle, _thread) =
        start(config, fake.tokenizer().clone(), fake.info().clone(), || Ok(Telltale)).expect("starts");
    for (priority, expected) in [(Priority::Interactive, 1.0), (Priority::Bulk, 2.0)] {
        let vectors = handle.embed(InputKind::Raw, vec!["wort".to_owned()], priority).await;
        assert_eq!(vectors.expect("embeds"), [[expected; 4]]);
    }
}

fn pairs(documents: &[&str]) -> Vec<Pair> {
    documents.iter().map(|text| Pair { query: "abc".into(), document: (*text).to_owned() }).collect()
}

#[tokio::test]
async fn pairs_and_texts_share_the_thread_and_never_a_pass() {
    let (handle, _thread) = fake_embedder_with_reranker(4);
    let documents = ["a", "bc", "xyz", "abcabc"];
    let texts: Vec<String> = documents.iter().map(|text| (*text).to_owned()).collect();
    for priority in [Priority::Interactive, Priority::Bulk] {
        let scoring = handle.score_pairs(pairs(&documents), None, priority);
        let embedding = handle.embed(InputKind::Raw, texts.clone(), priority);
        let (scores, vectors) = tokio::join!(scoring, embedding);
        assert_eq!(scores.expect("scores").scores, [1.0, 2.0, 0.0, 6.0]);
        assert!(vectors.expect("embeds").iter().all(|vector| vector.len() == 4));
    }
    let none = handle.score_pairs(Vec::new(), None, Priority::Interactive).await.expect("nothing to do");
    assert!(none.scores.is_empty());
    assert_eq!(handle.tokens_reranked(), 2 * (4 * "abc|".len() + 12));
    assert_eq!(handle.tokens_computed(), 2 * 12);
}

#[tokio::test]
async fn what_a_text_says_is_no_place_of_the_template() {
    struct Lengths;
    impl PairScorer for Lengths {
        fn score(
            &mut self,
            _: &[u32],
            _: &[u32],
            cu_seqlens: &[u32],
            out: &mut Vec<f32>,
        ) -> Result<(), String> {
            out.extend(cu_seqlens.windows(2).map(|pair| (pair[1] - pair[0]) as f32));
            Ok(())
        }
    }
    let (fake, _fake_thread) = fake_embedder(4);
    let info = RerankerInfo {
        id: "lengths".to_owned(),
        max_tokens: 64,
        template: Some("{query} {x} {document}".to_owned()),
        scale: ScoreScale::Logit,
    };
    let parts = RerankerParts {
        info,
        tokenizer: fake.tokenizer().clone(),
        build: Box::new(|| Ok(Box::new(Lengths))),
    };
    let config = EmbedConfig { max_batch_tokens: 8 };
    let (handle, _thread) = start_with_reranker(
        config,
        fake.tokenizer().clone(),
        fake.info().clone(),
        || Ok(Telltale),
        Some(parts),
    )
    .expect("starts");
    let pair = Pair { query: "{document}".into(), document: "{query}".to_owned() };
    let scored = handle.score_pairs(vec![pair], None, Priority::Bulk).await.expect("scores");
    assert_eq!(scored.scores, [("{document}".len() + " {x} ".len() + "{query}".len()) as f32]);
}

#[tokio::test]
async fn without_a_reranker_pairs_are_refused_and_one_that_cannot_be_built_says_why() {
    let (fake, _fake_thread) = fake_embedder(4);
    let refused = fake.score_pairs(pairs(&["a"]), None, Priority::Interactive).await;
    assert!(matches!(refused, Err(EmbedError::NoReranker)));
    let info =
        RerankerInfo { id: "r".to_owned(), max_tokens: 64, template: None, scale: ScoreScale::Sigmoid };
    let build = Box::new(|| Err("no head".to_owned()));
    let parts = RerankerParts { info, tokenizer: fake.tokenizer().clone(), build };
    let config = EmbedConfig { max_batch_tokens: 8 };
    let failed = start_with_reranker(
        config,
        fake.tokenizer().clone(),
        fake.info().clone(),
        || Ok(Telltale),
        Some(parts),
    );
    assert_eq!(failed.expect_err("fails").to_string(), "the embedder could not start: no head");
}

#[test]
fn a_query_waits_for_one_pass_of_a_long_job_before_it() {
    let (_jobs, receiver) = mpsc::channel();
    let mut worker = Worker {
        encoder: Telltale,
        reranker: None,
        receiver,
        counter: Weak::new(),
        dim: 4,
        max_batch_tokens: 8,
    };
    let mut open = VecDeque::new();
    let mut replies = Vec::new();
    for texts in [10, 1] {
        let input = EncoderInput { ids: vec![1; 8], types: Vec::new() };
        let (reply, answer) = tokio::sync::oneshot::channel();
        let (texts, network, priority) = (vec![input; texts], Network::Embedder, Priority::Interactive);
        take(Job { texts, network, priority, reply }, &mut open);
        replies.push(answer);
    }
    worker.pass(&mut open);
    assert!(replies[1].try_recv().is_err());
    worker.pass(&mut open);
    assert_eq!(replies[1].try_recv().expect("answered").expect("embeds").len(), 1);
    for _ in 0..9 {
        assert!(replies[0].try_recv().is_err());
        worker.pass(&mut open);
    }
    assert_eq!(replies[0].try_recv().expect("answered").expect("embeds").len(), 10);
}
