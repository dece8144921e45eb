use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::text::grammar::tests::{bytes_and_words, bytes_and_words_with};
use crate::text::{Grammar, GrammarCompiler};

fn parser(format: ToolFormat) -> ToolCallParser {
    ToolCallParser::new(format, vec!["weather".to_owned(), "add".to_owned()])
}

fn calls(format: ToolFormat, text: &str) -> (String, Vec<(String, String)>) {
    let (content, calls) = parser(format).whole(text);
    (content, calls.into_iter().map(|call| (call.name, call.arguments)).collect())
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

/// Events with neighbours of a kind joined.
fn joined(events: Vec<ToolEvent>) -> Vec<ToolEvent> {
    let mut out: Vec<ToolEvent> = Vec::new();
    for event in events {
        match (out.last_mut(), event) {
            (Some(ToolEvent::Content(last)), ToolEvent::Content(more)) => last.push_str(&more),
            (Some(ToolEvent::Arguments(last)), ToolEvent::Arguments(more)) => last.push_str(&more),
            (_, event) => out.push(event),
        }
    }
    out
}

fn in_pieces(format: ToolFormat, pieces: &[&str]) -> Vec<ToolEvent> {
    let mut parser = parser(format);
    let mut events: Vec<ToolEvent> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    joined(events)
}

const ANSWERS: &[(ToolFormat, &str)] = &[
    (
        ToolFormat::Hermes,
        "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln \\\"}\"}}\n</tool_call>",
    ),
    (
        ToolFormat::Hermes,
        "<tool_call>{\"arguments\": {\"a\": [1, {}]}, \"name\": \"add\"}</tool_call>\n<tool_call>\n{\"name\": \"add\"}\n</tool_call> done",
    ),
    (
        ToolFormat::Hermes,
        "a <tool_cal> b <tool_call> no JSON </tool_call> <tool_call>{\"name\": 3}</tool_call> <",
    ),
    (ToolFormat::Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": 1}\"}"),
    (ToolFormat::Hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1"),
    (
        ToolFormat::Mistral,
        "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}, \"id\": \"123456789\"}, {\"name\": \"add\", \"arguments\": {}}]",
    ),
    (ToolFormat::Mistral, "Sure [TOOL [TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1}}] bye"),
    (
        ToolFormat::MistralArgs,
        "[TOOL_CALLS]weather[ARGS]{\"city\": \"Köln\"}[TOOL_CALLS]add[CALL_ID]abc123def[ARGS]{\"a\": {}}",
    ),
    (ToolFormat::MistralArgs, "[TOOL_CALLS]what is this? [TOOL_CALLS]add[ARGS] 7"),
    (
        ToolFormat::Llama,
        "{\"name\": \"weather\", \"parameters\": {\"city\": \"Köln\"}}; {\"name\": \"add\", \"parameters\": {}}",
    ),
    (ToolFormat::Llama, " <|python_tag|>{\"name\": \"other\", \"parameters\": {\"x\": null}}"),
    (ToolFormat::Llama, "  {\"name\": \"Anna\", \"age\": 3} is JSON"),
    (ToolFormat::Llama, "{\"name\": \"add\", \"age\": 3}"),
    (ToolFormat::Llama, "<|python_tag|>brave_search.call(query=\"x\")"),
];

#[test]
fn hermes_calls_stand_in_tags() {
    let format = ToolFormat::Hermes;
    let (content, found) = calls(format, ANSWERS[0].1);
    assert_eq!(
        (content.as_str(), found),
        ("Let me see.", vec![call("weather", "{\"city\": \"Köln \\\"}\"}")])
    );
    let (content, found) = calls(format, ANSWERS[1].1);
    assert_eq!((content.as_str(), found), ("done", vec![call("add", "{\"a\": [1, {}]}"), call("add", "{}")]));
    let (content, found) = calls(format, ANSWERS[2].1);
    assert_eq!(
        (content.as_str(), found),
        (ANSWERS[2].1, vec![]),
        "what is no call is content, word for word"
    );
    assert_eq!(calls(format, ANSWERS[3].1), (String::new(), vec![call("add", "{\"a\": 1}")]));
    assert_eq!(
        calls(format, ANSWERS[4].1),
        (ANSWERS[4].1.to_owned(), vec![]),
        "an unfinished call is content"
    );
}

#[test]
fn mistral_calls_stand_in_a_list_or_after_their_names() {
    let both = vec![call("weather", "{\"city\": \"Köln\"}"), call("add", "{}")];
    assert_eq!(calls(ToolFormat::Mistral, ANSWERS[5].1), (String::new(), both));
    let (content, found) = calls(ToolFormat::Mistral, ANSWERS[6].1);
    assert_eq!((content.as_str(), found), ("Sure [TOOLbye", vec![call("add", "{\"a\": 1}")]));
    let both = vec![call("weather", "{\"city\": \"Köln\"}"), call("add", "{\"a\": {}}")];
    assert_eq!(calls(ToolFormat::MistralArgs, ANSWERS[7].1), (String::new(), both));
    let (content, found) = calls(ToolFormat::MistralArgs, ANSWERS[8].1);
    assert_eq!((content.as_str(), found), (ANSWERS[8].1, vec![]));
}

#[test]
fn llama_calls_are_bare_or_stand_after_a_tag() {
    let format = ToolFormat::Llama;
    let both = vec![call("weather", "{\"city\": \"Köln\"}"), call("add", "{}")];
    assert_eq!(calls(format, ANSWERS[9].1), (String::new(), both));
    assert_eq!(calls(format, ANSWERS[10].1), (String::new(), vec![call("other", "{\"x\": null}")]));
    for (_, text) in &ANSWERS[11..14] {
        assert_eq!(calls(format, text), ((*text).to_owned(), vec![]));
    }
}

#[test]
fn a_call_is_handed_on_before_it_is_complete() {
    let mut parser = parser(ToolFormat::Hermes);
    assert_eq!(parser.push("Hm <tool"), [ToolEvent::Content("Hm".to_owned())]);
    assert_eq!(parser.push("_call>{\"name\": \"add\", \"argu"), []);
    let begin = ToolEvent::Begin { name: "add".to_owned() };
    assert_eq!(parser.push("ments\": {\"a"), [begin, ToolEvent::Arguments("{\"a".to_owned())]);
    assert_eq!(parser.push("\": 1}"), [ToolEvent::Arguments("\": 1}".to_owned())]);
}

#[test]
fn every_cut_of_every_answer_gives_the_same() {
    for (format, text) in ANSWERS {
        let whole = in_pieces(*format, &[text]);
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            assert_eq!(in_pieces(*format, &[&text[..at], &text[at..]]), whole, "{text} at {at}");
        }
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(in_pieces(*format, &letters), whole, "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_is_lost_or_panics_however_it_is_cut(
        words in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{", "}", "[", "]", ",", ":", ";",
            "\"name\"", "\"arguments\"", "\"parameters\"", "\"add\"", "add", "\\", "\"", " ", "\n", "ö", "7", "null",
        ]), 0..30),
        format in prop::sample::select(vec![
            ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::MistralArgs, ToolFormat::Llama,
        ]),
    ) {
        let text = words.concat();
        let pieces: Vec<&str> = words.clone();
        let events = in_pieces(format, &pieces);
        prop_assert_eq!(&events, &in_pieces(format, &[&text]));
        // Calls open and close in turn.
        let mut open = false;
        for event in &events {
            match event {
                ToolEvent::Begin { .. } => { prop_assert!(!open); open = true; }
                ToolEvent::Arguments(_) => prop_assert!(open),
                ToolEvent::End { .. } => { prop_assert!(open); open = false; }
                ToolEvent::Content(_) => prop_assert!(!open),
            }
        }
        prop_assert!(!open);
        if !events.iter().any(|event| matches!(event, ToolEvent::Begin { .. })) {
            let content: String = events.iter().map(|event| match event {
                ToolEvent::Content(text) => text.as_str(),
                _ => "",
            }).collect();
            // Only list brackets that held nothing and blanks at borders may go.
            let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric() && !c.is_whitespace()).count();
            if format == ToolFormat::Hermes || format == ToolFormat::Llama {
                prop_assert_eq!(letters(&content), letters(&text));
            }
        }
    }
}

#[test]
fn templates_show_their_family() {
    for (template, format) in [
        ("{{ '[TOOL_CALLS] [' }}", ToolFormat::Mistral),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", ToolFormat::MistralArgs),
        ("within <tool_call></tool_call> XML tags", ToolFormat::Hermes),
        ("{{- '<|python_tag|>' }}", ToolFormat::Llama),
        ("{{ message.content }}", ToolFormat::Hermes),
    ] {
        assert_eq!(ToolFormat::detect(template), format, "{template}");
    }
    assert_eq!(ToolFormat::named("llama3_json"), Some(ToolFormat::Llama));
    assert_eq!(ToolFormat::named("nobody"), None);
}

#[test]
fn forced_answers_are_calls_that_the_parser_reads() {
    let tokenizer = bytes_and_words();
    let compiler = GrammarCompiler::new(&tokenizer, 320, &[260]).expect("builds");
    let place = json!({"$ref": "#/$defs/place", "$defs": {"place": {"type": "object",
        "properties": {"city": {"enum": ["Bonn"]}}, "required": ["city"], "additionalProperties": false}}});
    let functions = [("weather".to_owned(), Some(place)), ("add".to_owned(), None)];
    for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::MistralArgs, ToolFormat::Llama] {
        let calls = ForcedCalls { functions: &functions, parallel: false, otherwise: Otherwise::Nothing };
        let grammar = forced_calls(format, &tokenizer, calls).expect("a grammar");
        let mut matcher = compiler.compile(&grammar).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        let mut ids = Vec::new();
        while !matcher.is_complete() && ids.len() < 200 {
            let mut words = vec![0_u64; 5];
            matcher.fill(&mut words);
            let allowed = |id: &u32| words[*id as usize / 64] >> (id % 64) & 1 == 1;
            // `w` of weather, and otherwise what comes first that is no layout.
            let id = [u32::from(b'w')].into_iter().chain(33..320).chain([32, 10]).find(allowed);
            let id =
                id.unwrap_or_else(|| panic!("{format:?}: nothing after {}", tokenizer.decode(&ids, false)));
            matcher.advance(id);
            ids.push(id);
        }
        let text = tokenizer.decode(&ids, false);
        let parser = ToolCallParser::new(format, vec!["weather".to_owned()]);
        let (content, found) = parser.whole(text.trim_end_matches("<|end|>"));
        assert_eq!((content.as_str(), found.len()), ("", 1), "{format:?}: {text}");
        assert_eq!(found[0].name, "weather");
        assert_eq!(found[0].arguments.replace(' ', ""), "{\"city\":\"Bonn\"}");
    }
}

#[test]
fn an_answer_may_be_calls_or_json() {
    let tokenizer = bytes_and_words();
    let compiler = GrammarCompiler::new(&tokenizer, 320, &[260]).expect("builds");
    let functions = [("add".to_owned(), None)];
    let digit =
        Grammar::JsonSchema { schema: json!({"type": "array", "items": {"enum": [1, 2]}}), strict: true };
    for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::MistralArgs, ToolFormat::Llama] {
        let calls = ForcedCalls { functions: &functions, parallel: true, otherwise: Otherwise::Json(&digit) };
        let grammar = forced_calls(format, &tokenizer, calls).expect("a grammar");
        let matcher = compiler.compile(&grammar).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        let (arguments, call) = ("{\"a\": 1}", "{\"name\": \"add\", \"");
        let call = match format {
            ToolFormat::Hermes => format!("<tool_call>\n{call}arguments\": {arguments}}}\n</tool_call>"),
            ToolFormat::Mistral => format!("[{call}arguments\": {arguments}}}]"),
            ToolFormat::MistralArgs => format!("add[ARGS]{arguments}"),
            ToolFormat::Llama => format!("{call}parameters\": {arguments}}}"),
        };
        for (text, good) in [("[1, 2]", true), (call.as_str(), true), ("[3]", false), ("text", false)] {
            let mut matcher = matcher.fork();
            if good && text == call && matches!(format, ToolFormat::Mistral | ToolFormat::MistralArgs) {
                matcher.advance(262);
            }
            text.bytes().for_each(|byte| matcher.advance(u32::from(byte)));
            assert_eq!(!matcher.failed(), good, "{format:?}: {text}");
        }
    }
    let regex = Grammar::Regex("a".to_owned());
    let calls = ForcedCalls { functions: &functions, parallel: true, otherwise: Otherwise::Json(&regex) };
    assert_eq!(forced_calls(ToolFormat::Hermes, &tokenizer, calls), None);
}

#[test]
fn a_call_in_free_text_follows_its_schema_once_it_begins() {
    let tokenizer = bytes_and_words();
    let compiler = GrammarCompiler::new(&tokenizer, 320, &[260]).expect("builds");
    let digit = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
        "additionalProperties": false});
    let functions = [("add".to_owned(), Some(digit))];
    for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::MistralArgs, ToolFormat::Llama] {
        let calls = ForcedCalls { functions: &functions, parallel: true, otherwise: Otherwise::Text };
        let grammar = forced_calls(format, &tokenizer, calls).expect("a grammar");
        let matcher = compiler.compile(&grammar).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        let ends = |text: &str| {
            let mut matcher = matcher.fork();
            // A mark that is a token of its own.
            let mut parts = text.split("[TOOL_CALLS]");
            parts.next().expect("some").bytes().for_each(|byte| matcher.advance(u32::from(byte)));
            for part in parts {
                matcher.advance(262);
                part.bytes().for_each(|byte| matcher.advance(u32::from(byte)));
            }
            let mut words = vec![0_u64; 5];
            matcher.fill(&mut words);
            !matcher.failed() && words[260 / 64] >> (260 % 64) & 1 == 1
        };
        let call = |digit: u8| match format {
            ToolFormat::Hermes => {
                format!("<tool_call>\n{{\"name\": \"add\", \"arguments\": {{\"a\": {digit}}}}}\n</tool_call>")
            }
            ToolFormat::Mistral => {
                format!("[TOOL_CALLS][{{\"name\": \"add\", \"arguments\": {{\"a\": {digit}}}}}]")
            }
            ToolFormat::MistralArgs => format!("[TOOL_CALLS]add[ARGS]{{\"a\": {digit}}}"),
            ToolFormat::Llama => format!("{{\"name\": \"add\", \"parameters\": {{\"a\": {digit}}}}}"),
        };
        assert!(ends("just <tool> [text]\n") && ends(""), "{format:?}");
        assert!(ends(&call(2)) && !ends(&call(3)), "{format:?}");
        if format != ToolFormat::Llama {
            assert!(ends(&format!("Hm. {}", call(1))) && !ends(&format!("Hm. {}", call(3))), "{format:?}");
        }
    }
}

#[test]
fn a_mark_in_plain_letters_is_the_whole_mark() {
    let tokenizer = bytes_and_words_with(&[260, 261]);
    let compiler = GrammarCompiler::new(&tokenizer, 320, &[260]).expect("builds");
    let functions = [("add".to_owned(), None)];
    for (format, call) in [
        (ToolFormat::Mistral, "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {}}]"),
        (ToolFormat::MistralArgs, "[TOOL_CALLS]add[ARGS]{}"),
    ] {
        let calls = ForcedCalls { functions: &functions, parallel: true, otherwise: Otherwise::Text };
        let grammar = forced_calls(format, &tokenizer, calls).expect("a grammar");
        let ends = |text: &str| {
            let mut matcher = compiler.compile(&grammar).expect("compiles");
            text.bytes().for_each(|byte| matcher.advance(u32::from(byte)));
            let mut words = vec![0_u64; 5];
            matcher.fill(&mut words);
            !matcher.failed() && words[260 / 64] >> (260 % 64) & 1 == 1
        };
        assert!(ends("Lots of TALK, A to Z_") && ends("[TOOL"), "{format:?}");
        assert!(ends(call) && ends(&format!("Hm. {call}")), "{format:?}");
        assert!(!ends("[TOOL_CALLS]so"), "{format:?}: what begins like a call must be one");
    }
}

#[test]
fn a_call_that_is_none_gives_the_reader_its_marks_too() {
    for text in [
        "<tool_call>{\"name\": \"add\", \"arguments\": [1]}</tool_call> so",
        "<tool_call>{\"name\": \"add\", \"arguments\": 3}\n</tool_call>",
        "<tool_call>{\"name\": \"add\", \"arguments\": 3} </tool",
    ] {
        let (content, found) = calls(ToolFormat::Hermes, text);
        assert_eq!((content.as_str(), found.len()), (text, 0));
    }
}
