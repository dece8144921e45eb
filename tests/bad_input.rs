//! What a user gets wrong: each case is a refusal that names the thing and says what to do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::support::{Server, TARN, tarn, write_embedder, write_model};

fn config(change: impl FnOnce(&mut Value)) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    change(&mut config);
    config
}

/// What `tarn generate` says to the model in `path`; it must fail without a panic.
fn refusal(path: &Path) -> String {
    let output = Command::new(TARN).args(["generate", "x", "--model"]).arg(path).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn assert_says(said: &str, all: &[&str]) {
    for words in all {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

/// A model folder with a tokenizer, changed by `spoil`.
fn spoilt(config: &Value, spoil: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().expect("dir");
    write_embedder(dir.path());
    write_model(dir.path(), config, 1);
    spoil(dir.path());
    refusal(dir.path())
}

#[test]
fn folders_that_are_no_models_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    assert_says(&refusal(&dir.path().join("nowhere")), &["nowhere"]);
    assert_says(&refusal(dir.path()), &["config.json", ".gguf"]);
    assert_says(
        &spoilt(&config(|_| {}), |dir| std::fs::write(dir.join("config.json"), "{").expect("writes")),
        &["config.json"],
    );
    let config = config(|c| c["architectures"] = json!(["MambaForCausalLM"]));
    assert_says(&spoilt(&config, |_| {}), &["MambaForCausalLM", "Mixtral"]);
}

#[test]
fn tensors_that_are_missing_or_misshapen_are_named() {
    let deeper = config(|c| c["num_hidden_layers"] = json!(2));
    let rewrite = |config: Value| {
        move |dir: &Path| std::fs::write(dir.join("config.json"), config.to_string()).expect("writes")
    };
    assert_says(&spoilt(&config(|_| {}), rewrite(deeper)), &["model.layers.1.", "missing", "download"]);
    let wider = config(|c| c["intermediate_size"] = json!(64));
    assert_says(&spoilt(&config(|_| {}), rewrite(wider)), &["mlp.gate_proj.weight", "[48, 32]", "[64, 32]"]);
    let cut = |dir: &Path| {
        let file = dir.join("model.safetensors");
        let bytes = std::fs::read(&file).expect("reads");
        std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("writes");
    };
    assert_says(&spoilt(&config(|_| {}), cut), &["model.safetensors", "truncated"]);
    let without = |dir: &Path| std::fs::remove_file(dir.join("model.safetensors")).expect("removes");
    assert_says(&spoilt(&config(|_| {}), without), &["model.safetensors"]);
}

/// A GGUF file with one metadata value and one tensor of 32 columns.
fn gguf(alignment: u32, kind: u32, offset: u64, data: usize) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    out.extend(3_u32.to_le_bytes());
    out.extend(1_u64.to_le_bytes());
    out.extend(2_u64.to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8_u32.to_le_bytes());
    text(&mut out, "llama");
    text(&mut out, "general.alignment");
    out.extend(4_u32.to_le_bytes());
    out.extend(alignment.to_le_bytes());
    text(&mut out, "token_embd.weight");
    out.extend(2_u32.to_le_bytes());
    out.extend(32_u64.to_le_bytes());
    out.extend(4_u64.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

#[test]
fn damaged_gguf_files_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let refused = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).expect("writes");
        refusal(&file)
    };
    let whole = gguf(32, 0, 0, 512);
    assert_says(&refused("fields.gguf", &whole), &["llama.attention.head_count"]);
    assert_says(&refused("type.gguf", &gguf(32, 16, 0, 512)), &["token_embd.weight", "IQ2_XXS", "Q8_0"]);
    assert_says(&refused("align.gguf", &gguf(33, 0, 0, 512)), &["general.alignment", "power of two"]);
    assert_says(&refused("offset.gguf", &gguf(32, 0, 8, 512)), &["token_embd.weight", "aligned"]);
    assert_says(&refused("short.gguf", &gguf(32, 0, 0, 64)), &["token_embd.weight", "truncated"]);
    assert_says(&refused("zip.gguf", b"PK\x03\x04"), &["zip.gguf", "GGUF"]);
    for length in 5..whole.len() - 512 {
        let said = refused_in_process(&dir.path().join("cut.gguf"), &whole[..length]);
        assert!(said.contains("cut.gguf"), "{length} bytes: {said}");
    }
}

fn refused_in_process(file: &Path, bytes: &[u8]) -> String {
    std::fs::write(file, bytes).expect("writes");
    tarn::model::ModelSource::open(file).expect_err("refused").to_string()
}

#[test]
fn files_that_cannot_be_read_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, lake) = (dir.path().join("embedder"), dir.path().join("lake"));
    write_embedder(&embedder);
    let hostile = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile");
    let mut bomb = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    bomb.start_file("zeros.txt", zip::write::SimpleFileOptions::default()).expect("starts");
    std::io::Write::write_all(&mut bomb, &vec![b'0'; 64 << 20]).expect("writes");
    let bomb = bomb.finish().expect("ends").into_inner();
    assert!(bomb.len() < 100_000);
    let made = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).expect("writes");
        file
    };
    for (file, words) in [
        (hostile.join("encrypted.pdf"), &["encrypted.pdf", "remove the password"][..]),
        (hostile.join("encrypted.xlsx"), &["encrypted.xlsx", "remove the password"]),
        (made("bomb.zip", &bomb), &["bomb.zip", "zeros.txt", "200 times"]),
        (made("empty.txt", b""), &["empty.txt", "empty"]),
        (made("cut.pdf", b"%PDF-1.7\n1 0 obj"), &["cut.pdf", "cannot be read"]),
        (made("program.exe", b"MZ\x00\x01\x02\x03\x00\x00"), &["program.exe", "unsupported", "XLSX"]),
    ] {
        let output = tarn(&embedder, &lake).arg("ingest").arg(&file).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{file:?}: {}", String::from_utf8_lossy(&output.stderr));
        let line: Value = serde_json::from_slice(&output.stdout).expect("one line");
        assert_says(line["error"].as_str().expect("refused"), words);
    }
}

#[test]
fn a_document_that_takes_too_long_or_too_much_is_stopped() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, lake) = (dir.path().join("embedder"), dir.path().join("lake"));
    write_embedder(&embedder);
    let file = dir.path().join("large.csv");
    std::fs::write(&file, "a;b;c\n".repeat(16 << 20)).expect("writes");
    for (limit, value, words) in
        [("--parse-seconds", "1", "--parse-seconds"), ("--parse-mb", "256", "--parse-mb")]
    {
        let output = tarn(&embedder, &lake).args(["ingest", limit, value]).arg(&file).output().expect("runs");
        let line: Value = serde_json::from_slice(&output.stdout).expect("one line");
        assert_says(line["error"].as_str().expect("refused"), &["large.csv", words]);
    }
}

/// What a server says to `request`, which closes the connection.
fn said(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.url.trim_start_matches("http://")).expect("connects");
    stream.write_all(request).expect("sends");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("answers");
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: tarn\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn a_server_refuses_nonsense_in_openais_shape_and_lives_on() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, lake) = (dir.path().join("embedder"), dir.path().join("lake"));
    write_embedder(&embedder);
    let server = Server::start(tarn(&embedder, &lake));
    let json = "Content-Type: application/json\r\n";
    let deep = "[".repeat(100_000);
    for (line, headers, body, status) in [
        ("POST /v1/embeddings", json, &b"{"[..], 400),
        ("POST /v1/embeddings", json, b"\xff\xfe{}", 400),
        ("POST /v1/embeddings", json, b"[]", 400),
        ("POST /v1/embeddings", json, deep.as_bytes(), 400),
        ("POST /v1/embeddings", "", br#"{"input": "x"}"#, 415),
        ("POST /v1/completions", json, br#"{"prompt": "x"}"#, 404),
        ("POST /v1/responses", json, br#"{"input": "x"}"#, 404),
        ("POST /v1/load_lora_adapter", json, br#"{"lora_name": "a", "lora_path": "/etc"}"#, 403),
        ("POST /api/upload/files", json, b"{}", 400),
        ("POST /api/upload/files", "Content-Type: multipart/form-data; boundary=b\r\n", b"--b", 400),
        ("GET /v1/responses/resp_x", "", b"", 404),
        ("GET /v1/models/%ff", "", b"", 400),
        ("GET /api/jobs/%ff", "", b"", 400),
        ("GET /api/jobs/..%2F..%2Fx", "", b"", 404),
        ("GET /stats", "X-Customer-Id: ../x\r\n", b"", 400),
        ("GET /delta/query/general_chunks?limit=99999999999999999999", "", b"", 400),
        ("PUT /v1/models", "", b"", 405),
        ("GET /nowhere", "", b"", 404),
    ] {
        let answer = said(&server, &request(line, headers, body));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let body: Value = serde_json::from_str(body).expect("JSON");
        let error = &body["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{line}: {body}");
        assert!(error.get("param").is_some() && error.get("code").is_some(), "{line}: {body}");
    }
    said(&server, b"\x16\x03\x01 no HTTP at all\r\n\r\n");
    assert!(said(&server, &request("GET /health", "", b"")).contains("healthy"));
}
