//! The rules of docs/ARCHITECTURE.md, *Code map*, as a test.
//!
//! Every source file of the root package is parsed; test-only items are dropped;
//! every path that is left is compared with the tables below. Each rule has a
//! fixture that breaks it, so that a rule which stops biting is noticed.

use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

/// Module of ours -> modules of ours it may name. `telemetry` is open to all; what
/// is not listed may be named by nobody else.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "config",
            "customers",
            "embed",
            "engine",
            "ingest",
            "lake",
            "model",
            "rag",
            "server",
            "telemetry",
            "text",
        ],
    ),
    ("config", &["customers", "embed", "engine", "ingest", "lake", "model", "rag", "server"]),
    ("server", &["customers", "embed", "engine", "ingest", "lake", "rag", "text"]),
    ("rag", &["customers", "embed", "engine", "lake", "text"]),
    ("ingest", &["customers", "embed", "lake", "text"]),
    ("engine", &["model"]),
    ("embed", &["model", "text"]),
    ("lake", &[]),
    ("model", &[]),
    ("text", &[]),
    ("customers", &[]),
    ("telemetry", &[]),
    ("testing", &["embed", "engine", "model", "text"]),
];

/// External crate -> the only modules of ours that may name it.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("lance", &["lake"]),
    ("lance_index", &["lake"]),
    ("deltalake", &["lake"]),
    ("datafusion", &["lake"]),
    ("object_store", &["lake"]),
    ("axum", &["server", "cli"]),
    ("utoipa", &["server"]),
    ("anyhow", &["main", "cli"]),
    ("memmap2", &[]),
    ("hf_hub", &["cli"]),
    ("prometheus", &["telemetry"]),
];

/// Module -> external crates it must not name.
const NEVER: &[(&str, &[&str])] = &[
    ("engine", &["serde_json", "axum", "tokenizers", "minijinja"]),
    ("model", &["tokio", "axum", "tokenizers"]),
    ("text", &["tokio", "axum", "candle_core"]),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "types", "manager", "misc"];

/// What one file breaks, one line a violation.
fn violations(file: &Path, source: &str) -> Vec<String> {
    let module = module_path(file);
    let top = module.first().map_or("lib", String::as_str);
    let mut found = Vec::new();
    let mut say = |what: String| found.push(format!("{}: {what}", file.display()));

    if let Some(name) = module.iter().find(|name| EMPTY_NAMES.contains(&name.as_str())) {
        say(format!("a module named `{name}` says nothing about what is in it"));
    }
    let parsed = match syn::parse_file(source) {
        Ok(parsed) => parsed,
        Err(err) => return vec![format!("{}: does not parse: {err}", file.display())],
    };
    for item in &parsed.items {
        if let syn::Item::Static(item) = item
            && top != "telemetry"
        {
            say(format!("static `{}`: state lives in the thread that owns it", item.ident));
        }
    }
    let mut paths = Vec::new();
    collect_paths(without_tests(parsed), &[], &mut paths);
    for path in paths {
        let first = path[0].as_str();
        let named = match first {
            "crate" | "tarn" => path.get(1).cloned(),
            "super" => resolve_super(&module, &path),
            _ => None,
        };
        if let Some(named) = named
            && named != top
            && top != "lib"
            && named != "telemetry"
            && MAY_IMPORT.iter().any(|(name, _)| *name == named)
            && !MAY_IMPORT.iter().any(|(name, may)| *name == top && may.contains(&named.as_str()))
        {
            say(format!("`{top}` must not import `{named}` ({})", path.join("::")));
        }
        if let Some((name, only)) = ONLY_IN.iter().find(|(name, _)| *name == first)
            && !only.contains(&top)
        {
            say(format!("`{name}` belongs to {only:?} only"));
        }
        if NEVER.iter().any(|(name, never)| *name == top && never.contains(&first)) {
            say(format!("`{top}` must not know `{first}`"));
        }
        if top == "engine" && first == "tokio" && path.get(1).is_some_and(|second| second != "sync") {
            say(format!("of tokio the engine uses only `sync` ({})", path.join("::")));
        }
        let reads_env = path.windows(2).any(|pair| {
            pair[0] == "env" && ["var", "var_os", "vars", "vars_os", "set_var"].contains(&pair[1].as_str())
        });
        if reads_env && top != "config" {
            say("only `config` reads the environment".to_owned());
        }
        if first == "unsafe" {
            say("`unsafe` occurs only in kernels/".to_owned());
        }
    }
    found.sort();
    found.dedup();
    found
}

/// `src/engine/block_pool.rs` is `["engine", "block_pool"]`; `src/lib.rs` is `[]`.
fn module_path(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix("src").unwrap_or(file).with_extension("");
    let mut parts: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

fn resolve_super(module: &[String], path: &[String]) -> Option<String> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    if ups < module.len() { module.first().cloned() } else { path.get(ups).cloned() }
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = quote_tokens(attribute);
        attribute.path().is_ident("test") || (attribute.path().is_ident("cfg") && text.contains("test"))
    })
}

fn quote_tokens(attribute: &syn::Attribute) -> String {
    match &attribute.meta {
        syn::Meta::List(list) => list.tokens.to_string(),
        _ => String::new(),
    }
}

fn without_tests(file: syn::File) -> TokenStream {
    let source: Vec<syn::Item> = file
        .items
        .into_iter()
        .filter(|item| {
            let attributes: &[syn::Attribute] = match item {
                syn::Item::Mod(item) => &item.attrs,
                syn::Item::Fn(item) => &item.attrs,
                syn::Item::Use(item) => &item.attrs,
                syn::Item::Impl(item) => &item.attrs,
                syn::Item::Struct(item) => &item.attrs,
                _ => &[],
            };
            !is_test_only(attributes)
        })
        .collect();
    let mut tokens = TokenStream::new();
    for item in source {
        quote::ToTokens::to_tokens(&item, &mut tokens);
    }
    tokens
}

/// Every `a::b::c` in a token stream, use trees expanded, macros included.
fn collect_paths(tokens: TokenStream, prefix: &[String], paths: &mut Vec<Vec<String>>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        let TokenTree::Ident(ident) = &trees[at] else {
            if let TokenTree::Group(group) = &trees[at] {
                collect_paths(group.stream(), &[], paths);
            }
            at += 1;
            continue;
        };
        let mut path = prefix.to_vec();
        path.push(ident.to_string());
        at += 1;
        while is_colon(&trees, at) && is_colon(&trees, at + 1) {
            match trees.get(at + 2) {
                Some(TokenTree::Ident(next)) => path.push(next.to_string()),
                Some(TokenTree::Group(group)) => collect_paths(group.stream(), &path, paths),
                _ => break,
            }
            at += 3;
        }
        paths.push(path);
    }
}

fn is_colon(trees: &[TokenTree], at: usize) -> bool {
    matches!(trees.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("src is there").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs")
            && path.file_stem().is_none_or(|stem| stem != "tests")
            && !path.components().any(|part| part.as_os_str() == "tests")
        {
            into.push(path);
        }
    }
}

#[test]
fn every_source_file_keeps_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    assert!(files.len() > 20, "found only {} files", files.len());
    let mut found = Vec::new();
    for file in files {
        let source = std::fs::read_to_string(&file).expect("readable");
        let relative = file.strip_prefix(root).expect("inside").to_owned();
        found.extend(violations(&relative, &source));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_root_package_forbids_unsafe() {
    let lib =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("lib.rs");
    assert!(lib.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn each_rule_bites() {
    let fixtures: &[(&str, &str, &str)] = &[
        ("src/engine/scheduler.rs", "use crate::text::Tokenizer;", "must not import `text`"),
        ("src/engine/scheduler.rs", "use crate::{model::Decoder, lake};", "must not import `lake`"),
        ("src/engine/mod.rs", "fn f() { super::rag::answer() }", "must not import `rag`"),
        ("src/rag/answer.rs", "fn f() { let x = crate::server::router(); }", "must not import `server`"),
        ("src/text/mod.rs", "fn f() { vec![crate::engine::start()]; }", "must not import `engine`"),
        ("src/model/mod.rs", "use crate::engine::StepPlan;", "must not import `engine`"),
        ("src/rag/mod.rs", "use crate::config::Settings;", "must not import `config`"),
        ("src/rag/mod.rs", "use lance::Dataset;", "belongs to"),
        ("src/ingest/mod.rs", "fn f() { datafusion::sql() }", "belongs to"),
        ("src/engine/mod.rs", "use serde_json::Value;", "must not know `serde_json`"),
        ("src/engine/mod.rs", "use tokio::time::sleep;", "only `sync`"),
        ("src/lake/mod.rs", "fn f() { std::env::var(\"X\").ok(); }", "reads the environment"),
        ("src/lake/mod.rs", "fn f() { unsafe { g() } }", "`unsafe`"),
        ("src/lake/utils.rs", "fn f() {}", "says nothing"),
        ("src/lake/mod.rs", "static X: u8 = 1;", "static"),
        ("src/server/mod.rs", "use anyhow::Result;", "belongs to"),
    ];
    for (file, source, expected) in fixtures {
        let found = violations(Path::new(file), source);
        assert!(found.iter().any(|line| line.contains(expected)), "{file}: {source}: {found:?}");
    }
    let fine =
        "use crate::model::Decoder; use tokio::sync::mpsc; #[cfg(test)] mod tests { use crate::testing::X; }";
    assert_eq!(violations(Path::new("src/engine/mod.rs"), fine), Vec::<String>::new());
}
