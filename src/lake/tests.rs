use std::path::Path;

use super::*;

fn lakes(root: &Path, failpoints: Failpoints) -> Lakes {
    let config = LakeConfig {
        root: root.to_owned(),
        retention: std::time::Duration::from_secs(3600),
        scan_threads: 1,
        failpoints,
    };
    Lakes::open(config).expect("opens")
}

/// A document of `chunks` chunks whose words and vectors follow from its text.
fn bundle(uri: &str, text: &str, chunks: i32) -> DocumentChange {
    let (document_id, ingest) = (document_id("default", uri), ingest_id());
    let sha = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text.as_bytes()));
    let document = DocumentRow {
        document_id: document_id.clone(),
        ingest_id: ingest.clone(),
        source_uri: uri.to_owned(),
        name: uri.to_owned(),
        content_sha256: sha.clone(),
        chunk_count: chunks,
        media_type: Some("text/plain".to_owned()),
        parser: "p".to_owned(),
        chunker: "c".to_owned(),
        embedder: "e".to_owned(),
        ingested_at: 1,
        ..DocumentRow::default()
    };
    let rows = (0..chunks)
        .map(|ordinal| ChunkRow {
            chunk_id: chunk_id(&document_id, &sha, "c", ordinal),
            ingest_id: ingest.clone(),
            document_id: document_id.clone(),
            ordinal,
            kind: "text".to_owned(),
            text: format!("{text} {ordinal}"),
            embed_text_hash: format!("{text} {ordinal}"),
            heading_path: vec!["a".to_owned(), "b".to_owned()],
            page_start: Some(ordinal),
            ..ChunkRow::default()
        })
        .collect();
    let direction = text.len() as f32;
    DocumentChange::Put(Box::new(DocumentBundle {
        document,
        chunks: rows,
        terms: (0..chunks).map(|ordinal| format!("{text} n{ordinal}")).collect(),
        vectors: (0..chunks).flat_map(|_| [direction.cos(), direction.sin()]).collect(),
    }))
}

async fn texts(lakes: &Lakes) -> Vec<String> {
    let snapshot =
        lakes.customer("default").expect("lake").snapshot(None, &Viewer::all()).await.expect("snapshot");
    let mut texts = Vec::new();
    for document in snapshot.documents(&DocumentFilter::default(), 1000, 0) {
        let chunks = snapshot.chunks(&document.document_id).await.expect("chunks");
        assert_eq!(chunks.len(), document.chunk_count as usize, "a document is whole");
        let terms = [chunks[0].text.split(' ').next().expect("word").to_owned()];
        let found = snapshot.text_search(&terms, 50, &DocumentFilter::default()).await.expect("searches");
        assert_eq!(
            found.iter().filter(|hit| hit.document.document_id == document.document_id).count(),
            chunks.len()
        );
        texts.push(chunks[0].text.clone());
    }
    texts.sort();
    texts
}

#[tokio::test]
async fn documents_are_added_replaced_and_deleted_and_old_versions_stay() {
    let dir = tempfile::tempdir().expect("dir");
    let lakes = lakes(dir.path(), Failpoints::default());
    let lake = lakes.customer("default").expect("lake");
    assert!(texts(&lakes).await.is_empty());
    let first = lake.commit(vec![bundle("a", "alpha", 3), bundle("b", "beta", 2)]).await.expect("commits");
    assert_eq!(first.applied, [Applied::Added, Applied::Added]);
    assert_eq!(
        lake.commit(vec![bundle("a", "alpha", 3)]).await.expect("commits").applied,
        [Applied::Unchanged]
    );
    let second = lake.commit(vec![bundle("a", "gamma", 1)]).await.expect("commits");
    assert_eq!(second.applied, [Applied::Replaced]);
    assert_eq!(texts(&lakes).await, ["beta 0", "gamma 0"]);
    let gone = lake
        .commit(vec![DocumentChange::Delete { document_id: document_id("default", "b") }])
        .await
        .expect("commits");
    assert_eq!(gone.applied, [Applied::Deleted]);
    assert_eq!(texts(&lakes).await, ["gamma 0"]);
    let old = lake.snapshot(Some(AsOf::Version(first.version)), &Viewer::all()).await.expect("old version");
    assert_eq!(old.count(&DocumentFilter::default()), 2);
    assert_eq!(
        old.text_search(&["alpha".to_owned()], 9, &DocumentFilter::default()).await.expect("searches").len(),
        3
    );
    let missing = lake.snapshot(Some(AsOf::Version(99)), &Viewer::all()).await.expect_err("refused");
    assert!(matches!(missing, LakeError::NoVersion { .. }));
    // Another process sees the same.
    let again = self::lakes(dir.path(), Failpoints::default());
    assert_eq!(texts(&again).await, ["gamma 0"]);
    assert_eq!(again.customer("default").expect("lake").stats().documents, 1);
}

#[tokio::test]
async fn vector_search_is_exact_and_refuses_other_dimensions() {
    let dir = tempfile::tempdir().expect("dir");
    let lakes = lakes(dir.path(), Failpoints::default());
    let lake = lakes.customer("default").expect("lake");
    lake.commit(vec![bundle("a", "a", 1), bundle("b", "bb", 1), bundle("c", "ccc", 1)])
        .await
        .expect("commits");
    let snapshot = lake.snapshot(None, &Viewer::all()).await.expect("snapshot");
    let hits = snapshot
        .vector_search(&[2.0_f32.cos(), 2.0_f32.sin()], 3, &DocumentFilter::default())
        .await
        .expect("hits");
    assert_eq!(hits.iter().map(|hit| hit.document.name.as_str()).collect::<Vec<_>>(), ["b", "c", "a"]);
    assert!((hits[0].score - 1.0).abs() < 1e-6);
    let filter =
        DocumentFilter { document_ids: vec![document_id("default", "c")], ..DocumentFilter::default() };
    assert_eq!(snapshot.vector_search(&[1.0, 0.0], 3, &filter).await.expect("hits").len(), 1);
    assert!(matches!(
        snapshot.vector_search(&[1.0], 3, &DocumentFilter::default()).await,
        Err(LakeError::Dimension { found: 2, wanted: 1 })
    ));
}

#[tokio::test]
async fn a_writer_that_stops_at_any_step_leaves_whole_documents_only() {
    for step in FailStep::ALL {
        let dir = tempfile::tempdir().expect("dir");
        let good = lakes(dir.path(), Failpoints::default());
        let lake = good.customer("default").expect("lake");
        lake.commit(vec![bundle("a", "alpha", 3), bundle("b", "beta", 2)]).await.expect("commits");
        let bad = lakes(dir.path(), Failpoints(Some((step, FailAction::Error))));
        let changes = vec![bundle("a", "omega", 2), bundle("c", "chi", 1)];
        bad.customer("default").expect("lake").commit(changes).await.expect_err("stops");
        let committed = step == FailStep::DocumentsCommitted;
        let expected: &[&str] =
            if committed { &["beta 0", "chi 0", "omega 0"] } else { &["alpha 0", "beta 0"] };
        assert_eq!(texts(&good).await, expected, "{step:?}");
        // The next writer repairs and goes on.
        lake.commit(vec![bundle("d", "delta", 1)]).await.expect("commits");
        let mut after: Vec<String> = expected.iter().map(|text| (*text).to_owned()).collect();
        after.push("delta 0".to_owned());
        after.sort();
        assert_eq!(texts(&good).await, after, "{step:?}");
    }
}

#[tokio::test]
async fn two_lakes_on_one_folder_commit_every_document_once() {
    let dir = tempfile::tempdir().expect("dir");
    let run = |from: usize| {
        let lakes = lakes(dir.path(), Failpoints::default());
        async move {
            let lake = lakes.customer("default").expect("lake");
            for at in from..from + 12 {
                lake.commit(vec![bundle(&format!("d{at}"), &format!("text{at}"), 1)]).await.expect("commits");
            }
        }
    };
    tokio::join!(run(0), run(8));
    let lakes = lakes(dir.path(), Failpoints::default());
    assert_eq!(texts(&lakes).await.len(), 20);
}

#[tokio::test]
async fn a_viewer_sees_what_its_groups_may_see() {
    let dir = tempfile::tempdir().expect("dir");
    let lakes = lakes(dir.path(), Failpoints::default());
    let lake = lakes.customer("default").expect("lake");
    let DocumentChange::Put(mut secret) = bundle("s", "secret", 1) else { unreachable!() };
    secret.document.acl = vec!["board".to_owned()];
    lake.commit(vec![DocumentChange::Put(secret), bundle("o", "open", 1)]).await.expect("commits");
    let count = async |viewer: Viewer| {
        let snapshot = lake.snapshot(None, &viewer).await.expect("snapshot");
        let query =
            TableQuery { columns: vec![], filter: Some("ordinal = 0".to_owned()), limit: 9, offset: 0 };
        let rows: usize = snapshot
            .scan("general_chunks", &query)
            .await
            .expect("scans")
            .iter()
            .map(RecordBatch::num_rows)
            .sum();
        let hits =
            snapshot.vector_search(&[1.0, 0.0], 9, &DocumentFilter::default()).await.expect("hits").len();
        assert_eq!(rows, hits);
        hits
    };
    assert_eq!(count(Viewer::all()).await, 2);
    assert_eq!(count(Viewer::groups(vec!["sales".to_owned()])).await, 1);
    assert_eq!(count(Viewer::groups(vec!["board".to_owned()])).await, 2);
    assert!(lakes.customer("../x").is_err());
}

#[tokio::test]
async fn of_two_changes_of_one_document_in_a_commit_the_last_counts() {
    let dir = tempfile::tempdir().expect("dir");
    let lakes = lakes(dir.path(), Failpoints::default());
    let lake = lakes.customer("default").expect("lake");
    lake.commit(vec![bundle("a", "alpha", 1)]).await.expect("commits");
    // Something new and then what is there: the document must not go.
    lake.commit(vec![bundle("a", "beta", 1), bundle("a", "alpha", 1)]).await.expect("commits");
    assert_eq!(texts(&lakes).await, ["alpha 0"]);
    let delete = DocumentChange::Delete { document_id: document_id("default", "a") };
    lake.commit(vec![delete.clone(), bundle("a", "alpha", 1)]).await.expect("commits");
    assert_eq!(texts(&lakes).await, ["alpha 0"]);
    lake.commit(vec![bundle("a", "gamma", 1), bundle("a", "delta", 2)]).await.expect("commits");
    assert_eq!(texts(&lakes).await, ["delta 0"]);
    lake.commit(vec![bundle("a", "epsilon", 1), delete]).await.expect("commits");
    assert!(texts(&lakes).await.is_empty());
}

#[tokio::test]
async fn a_first_commit_that_stops_at_any_step_does_not_spoil_the_lake() {
    for step in FailStep::ALL {
        let dir = tempfile::tempdir().expect("dir");
        let bad = lakes(dir.path(), Failpoints(Some((step, FailAction::Error))));
        bad.customer("default")
            .expect("lake")
            .commit(vec![bundle("a", "alpha", 1)])
            .await
            .expect_err("stops");
        let good = lakes(dir.path(), Failpoints::default());
        let committed = step == FailStep::DocumentsCommitted;
        assert_eq!(texts(&good).await.len(), usize::from(committed), "{step:?}");
        let lake = good.customer("default").expect("lake");
        lake.commit(vec![bundle("b", "beta", 1)]).await.expect("commits");
        assert_eq!(texts(&good).await.len(), 1 + usize::from(committed), "{step:?}");
    }
    // A writer that died while it created the dataset: folders, no manifest.
    let dir = tempfile::tempdir().expect("dir");
    std::fs::create_dir_all(dir.path().join("default/lance/embeddings.lance/_versions")).expect("folders");
    let lakes = lakes(dir.path(), Failpoints::default());
    lakes.customer("default").expect("lake").commit(vec![bundle("b", "beta", 1)]).await.expect("commits");
    assert_eq!(texts(&lakes).await, ["beta 0"]);
}

#[tokio::test]
async fn an_old_version_finds_what_was_deleted_since() {
    let dir = tempfile::tempdir().expect("dir");
    let lakes = lakes(dir.path(), Failpoints::default());
    let lake = lakes.customer("default").expect("lake");
    let first =
        lake.commit(vec![bundle("a", "alpha", 1), bundle("b", "beta", 3)]).await.expect("commits").version;
    let delete = DocumentChange::Delete { document_id: document_id("default", "b") };
    lake.commit(vec![delete]).await.expect("commits");
    let all = DocumentFilter::default();
    let hits = async |as_of| {
        let snapshot = lake.snapshot(as_of, &Viewer::all()).await.expect("snapshot");
        snapshot.text_search(&["beta".to_owned()], 9, &all).await.expect("hits").len()
    };
    // The index of the newest version is loaded first and lacks the deleted rows.
    assert_eq!(hits(None).await, 0);
    assert_eq!(hits(Some(AsOf::Version(first))).await, 3);
    assert_eq!(hits(None).await, 0);
    assert_eq!(hits(Some(AsOf::Version(first))).await, 3);
    let long_ago = AsOf::Time(chrono::DateTime::UNIX_EPOCH);
    let refused = lake.snapshot(Some(long_ago), &Viewer::all()).await.expect_err("refused");
    assert!(matches!(refused, LakeError::Expired { .. }), "{refused}");
}

#[tokio::test]
async fn filters_are_expressions_and_nothing_more() {
    let dir = tempfile::tempdir().expect("dir");
    let lakes = lakes(dir.path(), Failpoints::default());
    let lake = lakes.customer("default").expect("lake");
    lake.commit(vec![bundle("a", "alpha", 3)]).await.expect("commits");
    lake.commit(vec![bundle("b", "beta", 2)]).await.expect("commits");
    let snapshot = lake.snapshot(None, &Viewer::all()).await.expect("snapshot");
    let query = |filter: &str, columns: &[&str]| TableQuery {
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        filter: Some(filter.to_owned()),
        limit: 3,
        offset: 1,
    };
    let rows = async |filter: &str| -> usize {
        let query = query(filter, &["text"]);
        let found = snapshot.scan("general_chunks", &query).await.expect("scans");
        let vectors = snapshot.scan_vectors("embeddings.lance", &query).await.expect("scans");
        let count = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        assert_eq!(count(&found), count(&vectors), "{filter}");
        assert!(found.iter().all(|batch| batch.num_columns() == 1));
        count(&found)
    };
    assert_eq!(rows("ordinal >= 0").await, 3);
    assert_eq!(rows("ordinal = 1").await, 1);
    assert_eq!(rows("text LIKE 'alpha%' AND length(text) > 3").await, 2);
    assert_eq!(rows("starts_with(lower(text), 'beta')").await, 1);
    for wrong in
        ["length(repeat(text, 1000000)) > 0", "nothing = 1", "1 = 1; drop table x", "text IN (SELECT 1)"]
    {
        for table in [true, false] {
            let query = query(wrong, &[]);
            let answer = match table {
                true => snapshot.scan("general_chunks", &query).await,
                false => snapshot.scan_vectors("embeddings.lance", &query).await,
            };
            assert!(matches!(answer, Err(LakeError::Query(_))), "{wrong}");
        }
    }
    let answer = snapshot.scan_vectors("other.lance", &query("true", &[])).await;
    assert!(matches!(answer, Err(LakeError::NoDataset(_))));
}
