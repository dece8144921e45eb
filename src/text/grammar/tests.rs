use serde_json::json;

use super::*;
use crate::text::{Vocab, VocabKind};

/// One token a byte, some words, and control tokens.
pub(in crate::text) fn bytes_and_words() -> Tokenizer {
    bytes_and_words_with(&[260, 261, 262])
}

/// The same with these control tokens.
pub(in crate::text) fn bytes_and_words_with(control: &[u32]) -> Tokenizer {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut moved = 0x100_u32;
    let mut tokens: Vec<String> = (0..=255_u8)
        .map(|byte| {
            let code = if printable(byte) {
                u32::from(byte)
            } else {
                moved += 1;
                moved - 1
            };
            char::from_u32(code).expect("a character").to_string()
        })
        .collect();
    let words = ["na", "me", "{\"", "\":", "<|end|>", "<|eot|>", "[TOOL_CALLS]"];
    tokens.extend(words.map(str::to_owned));
    let merges = [("n", "a"), ("m", "e"), ("{", "\""), ("\"", ":")];
    let vocab = Vocab {
        kind: VocabKind::ByteLevel,
        pre: "gpt-2".to_owned(),
        tokens,
        merges: merges.map(|(left, right)| (left.to_owned(), right.to_owned())).to_vec(),
        scores: Vec::new(),
        control: control.to_vec(),
        user_defined: Vec::new(),
        bos: None,
        unk: None,
        space_prefix: false,
    };
    Tokenizer::from_vocab(&vocab, None, Some(260)).expect("builds")
}

const WIDTH: usize = 320;
const EOS: [u32; 2] = [260, 261];

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(&bytes_and_words(), WIDTH, &EOS).expect("builds")
}

fn allowed(matcher: &mut GrammarMatcher) -> Vec<u32> {
    let mut words = vec![0_u64; WIDTH.div_ceil(64)];
    matcher.fill(&mut words);
    (0..WIDTH as u32).filter(|id| words[*id as usize / 64] >> (id % 64) & 1 == 1).collect()
}

/// Whether the grammar takes `text` as a whole, a byte at a time.
fn takes(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = compiler().compile(grammar).expect("compiles");
    for byte in text.bytes() {
        if matcher.is_complete() {
            return false;
        }
        matcher.advance(u32::from(byte));
        if matcher.failed() {
            return false;
        }
    }
    matcher.is_complete() || EOS.iter().all(|eos| allowed(&mut matcher).contains(eos))
}

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema { schema, strict: true }
}

fn refusal(grammar: &Grammar) -> String {
    compiler().compile(grammar).expect_err("refused").to_string()
}

#[test]
fn each_kind_takes_what_it_describes_and_nothing_else() {
    let person = schema(json!({"type": "object", "properties": {"name": {"type": "string"}},
        "required": ["name"], "additionalProperties": false}));
    let ebnf = "root ::= greeting \" \" name # who\nname ::= [A-Z] [a-z]{1,3}\ngreeting ::= \"hi\" | \"a/b\"";
    for (grammar, good, bad) in [
        (Grammar::JsonObject, "{\"a\": [1, {}]}", "[1]"),
        (person.clone(), "{\"name\": \"x\\n€\"}", "{\"name\": 1}"),
        (person, "{\"name\": \"\"}", "{\"name\": \"\", \"b\": 1}"),
        (Grammar::Regex("[a-c]+/\\d{2}".to_owned()), "abc/12", "abc/1"),
        (Grammar::Context("start: \"a\" b\nb: /[0-9]/ | \"x\" b".to_owned()), "axx7", "ax"),
        (Grammar::Context(ebnf.to_owned()), "hi Bob", "hi bob"),
        (Grammar::Context(ebnf.to_owned()), "a/b Bobo", "a/b Boboo"),
        (Grammar::Choice(vec!["ja".to_owned(), "jawohl \"so\"".to_owned()]), "jawohl \"so\"", "nein"),
        (Grammar::Choice(vec!["ja".to_owned(), "jawohl".to_owned()]), "ja", "jawoh"),
    ] {
        assert!(takes(&grammar, good), "{grammar:?} must take {good}");
        assert!(!takes(&grammar, bad), "{grammar:?} must not take {bad}");
    }
}

#[test]
fn end_tokens_are_allowed_exactly_where_the_grammar_may_end() {
    let mut matcher = compiler().compile(&Grammar::Regex("ab?".to_owned())).expect("compiles");
    assert_eq!(allowed(&mut matcher), [u32::from(b'a')]);
    matcher.advance(u32::from(b'a'));
    assert_eq!(allowed(&mut matcher), [u32::from(b'b'), 260, 261]);
    assert!(!matcher.is_complete());
    let mut longer = matcher.fork();
    matcher.advance(261);
    assert!(matcher.is_complete(), "it was ended");
    longer.advance(u32::from(b'b'));
    assert!(longer.is_complete(), "nothing can follow");
    assert_eq!(allowed(&mut longer), EOS);
}

#[test]
fn control_tokens_are_never_text_and_tokens_beyond_the_tokenizer_never_come() {
    let any = Grammar::Regex("(?s:.*)".to_owned());
    let mut matcher = compiler().compile(&any).expect("compiles");
    let open = allowed(&mut matcher);
    assert!(open.contains(&u32::from(b'<')) && open.contains(&256) && open.contains(&260), "{open:?}");
    assert!(!open.contains(&262) && open.iter().all(|id| *id < 263), "{open:?}");
    // A text that spells a control token is spelt by others.
    let mut spelt = compiler().compile(&Grammar::Choice(vec!["<|end|>".to_owned()])).expect("compiles");
    assert_eq!(allowed(&mut spelt), [u32::from(b'<')]);
    for byte in "<|end|>".bytes() {
        spelt.advance(u32::from(byte));
    }
    assert!(spelt.is_complete());
}

#[test]
fn forced_text_is_spelt_as_the_tokenizer_spells_it() {
    let grammar = schema(json!({"type": "object", "properties": {"name": {"type": "integer"}},
        "required": ["name"], "additionalProperties": false}));
    let mut matcher = compiler().compile(&grammar).expect("compiles");
    for token in [258, 256, 257, 259, u32::from(b' ')] {
        assert_eq!(allowed(&mut matcher), [token]);
        matcher.advance(token);
    }
    assert!(allowed(&mut matcher).contains(&u32::from(b'7')));
}

#[test]
fn a_fork_goes_its_own_way() {
    let mut one = compiler().compile(&Grammar::Regex("a[0-9]+|b".to_owned())).expect("compiles");
    let mut other = one.fork();
    one.advance(u32::from(b'a'));
    other.advance(u32::from(b'b'));
    assert!(other.is_complete() && !one.is_complete());
    assert!(allowed(&mut one).contains(&u32::from(b'5')));
}

#[test]
fn grammars_that_differ_in_anything_have_other_digests() {
    let text = |text: &str| text.to_owned();
    let all = [
        Grammar::JsonObject,
        schema(json!({"properties": {"a": {}, "b": {}}})),
        schema(json!({"properties": {"b": {}, "a": {}}})),
        Grammar::JsonSchema { schema: json!({"properties": {"a": {}, "b": {}}}), strict: false },
        Grammar::Regex(text("a")),
        Grammar::Regex(text("a ")),
        Grammar::Context(text("a")),
        Grammar::Choice(vec![text("a")]),
        Grammar::Choice(vec![text("a"), text("b")]),
        Grammar::Choice(vec![text("a\",\"b")]),
    ];
    for (at, one) in all.iter().enumerate() {
        let same = all.iter().position(|other| other.digest() == one.clone().digest());
        assert_eq!(same, Some(at), "{one:?}");
    }
}

#[test]
fn a_larger_grammar_says_that_it_takes_more_memory() {
    let bytes = |grammar: &Grammar| compiler().compile(grammar).expect("compiles").bytes();
    let properties: Map<String, Value> =
        (0..100).map(|at| (format!("field{at}"), json!({"type": "string", "maxLength": at}))).collect();
    // The second has no source of its own: its lexer is what counts.
    let all = [
        Grammar::Regex("(.*a){5}.{5}".to_owned()),
        Grammar::JsonObject,
        schema(json!({"properties": properties})),
    ];
    let [pattern, object, rules] = all.map(|grammar| bytes(&grammar));
    assert!(object > 2 * pattern && rules > 2 * object, "{pattern}, {object}, {rules}");
}

#[test]
fn a_token_that_was_not_allowed_ends_what_can_follow() {
    let mut matcher = compiler().compile(&Grammar::JsonObject).expect("compiles");
    matcher.advance(u32::from(b'x'));
    assert!(matcher.failed() && !matcher.is_complete());
    assert_eq!(allowed(&mut matcher), Vec::<u32>::new());
}

#[test]
fn refusals_say_what_is_unsupported() {
    for (grammar, word) in [
        (schema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (schema(json!({"type": "object", "if": {}, "then": {}})), "if"),
        (schema(json!({"type": "wrong"})), "wrong"),
        (schema(json!({"type": "string", "minLength": 3, "maxLength": 1})), "minLength"),
        (schema(json!({"$ref": "https://example.com/schema.json"})), "example.com"),
        (schema(json!({"$ref": "#/$defs/none"})), "none"),
        (schema(json!({"$ref": "#"})), "admits no text"),
        (schema(json!(false)), "object"),
        (schema(json!("text")), "object"),
        (Grammar::Regex("a(".to_owned()), "regex"),
        (Grammar::Regex("(?=a)".to_owned()), "look-around"),
        (Grammar::Context("start: missing".to_owned()), "missing"),
        (Grammar::Context("root ::= \"a".to_owned()), "\""),
        (Grammar::Choice(Vec::new()), "choose"),
        (Grammar::Choice(vec![String::new()]), "empty"),
    ] {
        let said = refusal(&grammar);
        assert!(said.contains(word), "{grammar:?}: {said}");
        assert!(!said.contains('<') && said.len() < 2500, "{said}");
    }
}

#[test]
fn keywords_that_cannot_be_followed_are_ignored_where_that_was_asked_for() {
    let unique = json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true});
    assert!(takes(&Grammar::JsonSchema { schema: unique, strict: false }, "[1, 1]"));
}

#[test]
fn a_schema_does_not_set_the_compilers_options() {
    let own = json!({"type": "object", "x-guidance": {"item_separator": "_", "lenient": true}, "not": {}});
    assert!(refusal(&schema(own)).contains("not"));
}

#[test]
fn hostile_grammars_end_in_errors_or_in_bounded_work() {
    let chain: Map<String, Value> = (0..3000)
        .map(|at| (format!("d{at}"), json!({"$ref": format!("#/$defs/d{}", at + 1)})))
        .chain([("d3000".to_owned(), json!({"type": "null"}))])
        .collect();
    // As deep as the size allows: every definition is deep itself and names the next.
    let deep = |wrap: &dyn Fn(Value) -> Value| {
        let link =
            |at: usize| (0..50).fold(json!({"$ref": format!("#/$defs/d{}", at + 1)}), |inner, _| wrap(inner));
        let mut links: Map<String, Value> = (0..190).map(|at| (format!("d{at}"), link(at))).collect();
        links.insert("d190".to_owned(), json!({"type": "null"}));
        let whole = schema(json!({"$ref": "#/$defs/d0", "$defs": links}));
        assert!((MAX_SOURCE / 2..MAX_SOURCE).contains(&whole.source().len()), "{}", whole.source().len());
        whole
    };
    let wide = "x".repeat(MAX_SOURCE + 1);
    let nested = (0..100).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    let (compiler, started) = (compiler(), std::time::Instant::now());
    for grammar in [
        schema(json!({"$ref": "#/$defs/d0", "$defs": chain})),
        deep(&|inner| json!({"items": inner})),
        deep(&|inner| json!({"allOf": [inner]})),
        deep(&|inner| json!({"not": inner})),
        schema(json!({"enum": [wide]})),
        schema(nested),
        schema(json!({"$ref": "#"})),
        schema(json!({"type": "string", "pattern": "^(a|b)*a(a|b){500}(c|d)*c(c|d){500}$"})),
        schema(json!({"type": "array", "items": {"type": "null"}, "minItems": 4_000_000_000_u64})),
        schema(json!({"type": "string", "minLength": 1_000_000_000})),
        Grammar::Regex("((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}".to_owned()),
        Grammar::Regex("(".repeat(100_000)),
        Grammar::Regex("(.*a){50}.{50}".to_owned()),
        Grammar::Context("start: a\na: a a | \"x\" |".to_owned()),
        Grammar::Context(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))),
        Grammar::Context(format!("root ::= {}", "(\"a\"|".repeat(10_000))),
    ] {
        let compiled = compiler.compile(&grammar);
        if let Ok(mut matcher) = compiled {
            // Follows whatever comes first, for a while.
            for _ in 0..40 {
                let Some(id) = allowed(&mut matcher).into_iter().find(|id| !EOS.contains(id)) else { break };
                matcher.advance(id);
            }
        }
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn the_real_tokenizer_follows_a_schema_to_its_end() {
    let Some(models) = std::env::var_os("TARN_TEST_MODELS") else {
        println!("not run: no models");
        return;
    };
    let json = std::fs::read(std::path::Path::new(&models).join("smollm2-f32/tokenizer.json"));
    let tokenizer = Tokenizer::from_json(&json.expect("readable"), None).expect("builds");
    let compiler = GrammarCompiler::new(&tokenizer, 49_152, &[2]).expect("builds");
    let grammar = schema(json!({"type": "object", "properties": {"kind": {"enum": ["relay", "fuse"]},
        "poles": {"type": "integer", "minimum": 1, "maximum": 4}}, "required": ["kind", "poles"],
        "additionalProperties": false}));
    let mut matcher = compiler.compile(&grammar).expect("compiles");
    for id in tokenizer.encode("{\"kind\": \"fuse\", \"poles\": 3}", false).expect("encodes") {
        let mut words = vec![0_u64; 49_152 / 64];
        matcher.fill(&mut words);
        assert!(words[id as usize / 64] >> (id % 64) & 1 == 1, "{:?}", tokenizer.piece(id));
        matcher.advance(id);
    }
    assert!(matcher.is_complete());
}
