//! Answers that are held to a form: masks without a model, and answers of the demo model.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use gemma_pjrt::{
    constraint::{Constraint, ConstraintError, Grammars, Matcher},
    engine::{Answer, Engine, Event, FinishReason, Refusal, Request, RequestId},
    gemma::Lowering,
    hlo::Mesh,
    runtime::Model,
    sampling::{Params, Penalties},
    tokenizer::{Message, TextFiles, Tokenizer, minimal_tokenizer_json},
};
use serde_json::{Map, Value, json};

use crate::common::{KERNELS, NATIVE, demo_model, demo_tokenizer, several_devices};

fn grammars() -> &'static Arc<Grammars> {
    static GRAMMARS: OnceLock<Arc<Grammars>> = OnceLock::new();
    GRAMMARS.get_or_init(|| Arc::new(Grammars::new(demo_tokenizer().clone())))
}

fn bytes() -> &'static [Vec<u8>] {
    static BYTES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    BYTES.get_or_init(|| demo_tokenizer().token_bytes().unwrap())
}

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn matcher(constraint: &Constraint) -> Matcher {
    grammars().compile(constraint).unwrap_or_else(|e| panic!("{e}: {constraint:?}")).matcher()
}

fn allowed(matcher: &mut Matcher) -> Vec<u32> {
    let mask = matcher.mask().unwrap().to_vec();
    (0..mask.len() as u32 * 32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

/// An answer of tokens that are drawn from those that are allowed. After a while those that bring
/// strings and lists to an end are preferred.
fn draw(constraint: &Constraint, random: &mut Random) -> String {
    let mut matcher = matcher(constraint);
    let ends = demo_tokenizer().chat_stop_ids();
    let mut text = Vec::new();
    for taken in 0..2000 {
        if matcher.is_finished() {
            return String::from_utf8(text).unwrap();
        }
        let mut allowed = allowed(&mut matcher);
        let may_end = allowed.iter().any(|id| ends.contains(id));
        allowed.retain(|id| !ends.contains(id));
        if may_end && (allowed.is_empty() || taken > 40 || random.coin()) {
            return String::from_utf8(text).unwrap();
        }
        let closes = |id: &&u32| bytes()[**id as usize].first().is_some_and(|byte| b"\"]}".contains(byte));
        let closing: Vec<u32> = allowed.iter().filter(closes).copied().collect();
        let from = if taken > 12 && !closing.is_empty() { closing } else { allowed };
        let token = from[random.below(from.len())];
        matcher.accept(token).unwrap();
        text.extend(&bytes()[token as usize]);
    }
    panic!("no end: {}", String::from_utf8_lossy(&text));
}

#[test]
fn tokens_write_their_bytes() {
    let minimal = minimal_tokenizer_json(480).to_string();
    let minimal = Arc::new(Tokenizer::new(minimal.as_bytes(), &TextFiles::default()).unwrap());
    let texts = ["a b  c\n\n{\"k\": [1, -2.5e3]}", "\u{e9}\u{4e16}\u{754c} \u{1f30d}\t<0x41> <eos", "  \u{2581}x"];
    for tokenizer in [demo_tokenizer(), &minimal] {
        let bytes = tokenizer.token_bytes().unwrap();
        assert_eq!(bytes.len(), tokenizer.vocab_size());
        for text in texts {
            let ids = tokenizer.encode_continuation(text).unwrap();
            let written: Vec<u8> = ids.iter().flat_map(|&id| bytes[id as usize].clone()).collect();
            assert_eq!(String::from_utf8(written).unwrap(), tokenizer.decode(&ids).unwrap(), "{text:?}");
        }
        for name in ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"] {
            let id = tokenizer.control_token(name).unwrap();
            assert!(bytes[id as usize].is_empty(), "{name} writes text");
        }
    }
}

/// A decoder by which a token writes different texts in different places.
#[test]
fn tokenizers_of_another_kind_are_refused() {
    let mut json = minimal_tokenizer_json(480);
    json["decoder"] = json!({"type": "BPEDecoder", "suffix": "</w>"});
    let tokenizer = Tokenizer::new(json.to_string().as_bytes(), &TextFiles::default()).unwrap();
    let error = Grammars::new(Arc::new(tokenizer)).compile(&Constraint::JsonObject).unwrap_err();
    assert!(matches!(&error, ConstraintError::Tokenizer(reason) if reason.contains("one by one")), "{error}");
}

/// At each place the tokens that are allowed are those that a choice goes on with, and each choice
/// can be reached by the tokens that the tokenizer writes it with.
#[test]
fn choices_are_followed_byte_by_byte() {
    let choices = ["positive", "positively", "negative", "a \"b\" \\ c\n", "\u{e9}t\u{e9}", "</x> <eos>"];
    let constraint = Constraint::Choices(choices.map(str::to_owned).to_vec());
    let ends = demo_tokenizer().chat_stop_ids();
    let mut random = Random(7);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..60 {
        let mut matcher = matcher(&constraint);
        let mut text = Vec::new();
        loop {
            if matcher.is_finished() {
                break;
            }
            let allowed = allowed(&mut matcher);
            let fits = |id: u32| {
                let longer = [&text[..], &bytes()[id as usize]].concat();
                match ends.contains(&id) {
                    true => choices.iter().any(|choice| choice.as_bytes() == text),
                    false => choices.iter().any(|choice| choice.as_bytes().starts_with(&longer)),
                }
            };
            assert!(allowed.iter().all(|&id| fits(id)), "after {:?}", String::from_utf8_lossy(&text));
            let token = allowed[random.below(allowed.len())];
            if ends.contains(&token) {
                break;
            }
            matcher.accept(token).unwrap();
            text.extend(&bytes()[token as usize]);
        }
        seen.insert(String::from_utf8(text).unwrap());
    }
    assert!(seen.iter().all(|text| choices.contains(&text.as_str())), "{seen:?}");
    assert!(seen.len() >= 5, "{seen:?}");
    // "positive" is in "positively", so that an end is one of the ways on.
    for choice in choices {
        let mut matcher = matcher(&constraint);
        for id in demo_tokenizer().encode_continuation(choice).unwrap() {
            if demo_tokenizer().control_token(choice).is_some() || bytes()[id as usize].is_empty() {
                break; // a control token, which text does not form
            }
            if !matcher.is_finished() {
                matcher.accept(id).unwrap_or_else(|e| panic!("{choice:?}: {e}"));
            }
        }
    }
}

/// No answer has a control token, whatever its constraint looks like.
#[test]
fn control_tokens_are_never_allowed_but_to_end_an_answer() {
    let ends = demo_tokenizer().chat_stop_ids();
    for constraint in [
        Constraint::JsonObject,
        Constraint::Choices(vec!["<start_of_turn>user".into(), "<eos>".into()]),
        Constraint::Regex("(<bos>|<end_of_turn>|.)*".into()),
        Constraint::Grammar("start: /(?s:.*)/".into()),
        Constraint::Grammar("start: (<[*]>)*".into()),
        Constraint::Grammar("start: (<[^3-99]>)*".into()),
    ] {
        let mut random = Random(11);
        let mut matcher = matcher(&constraint);
        for _ in 0..40 {
            if matcher.is_finished() {
                break;
            }
            let mut allowed = allowed(&mut matcher);
            allowed.retain(|id| !ends.contains(id));
            assert!(allowed.iter().all(|&id| !bytes()[id as usize].is_empty()), "{constraint:?}");
            let Some(&token) = allowed.get(random.below(allowed.len().max(1))) else { break };
            matcher.accept(token).unwrap();
        }
    }
}

#[test]
fn expressions_match_the_whole_answer() {
    let mut random = Random(3);
    for _ in 0..40 {
        let text = draw(&Constraint::Regex(r"^[A-F]{2}/[0-9]{1,3}( or (yes|no))?$".into()), &mut random);
        let (head, rest) = text.split_at(2);
        assert!(head.bytes().all(|byte| (b'A'..=b'F').contains(&byte)), "{text}");
        let rest = rest.strip_prefix('/').unwrap();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        assert!((1..=3).contains(&digits) && ["", " or yes", " or no"].contains(&&rest[digits..]), "{text}");
    }
}

#[test]
fn grammars_are_followed() {
    let sums = "start: sum\nsum: NUMBER | sum \"+\" NUMBER | \"(\" sum \")\"\nNUMBER: /[1-9][0-9]{0,2}/\n";
    let mut random = Random(5);
    for _ in 0..40 {
        let text = draw(&Constraint::Grammar(sums.into()), &mut random);
        let opening = text.matches('(').count();
        assert_eq!(opening, text.matches(')').count(), "{text}");
        let numbers = text.split('+').map(|part| part.trim_matches(['(', ')']));
        assert!(numbers.clone().all(|number| number.parse::<u16>().is_ok_and(|n| n > 0)), "{text}");
    }
}

/// Without a schema, too, numbers and white space come to an end.
#[test]
fn numbers_and_white_space_come_to_an_end() {
    for constraint in [
        Constraint::JsonSchema(json!({})),
        Constraint::JsonSchema(json!(true)),
        Constraint::JsonSchema(json!({"type": "number"})),
        Constraint::JsonSchema(json!({"type": "integer", "minimum": 5})),
        Constraint::JsonSchema(json!({"type": "array", "items": {"type": "number", "maximum": 1e9}, "maxItems": 2})),
    ] {
        for first in ["1", "-", "[", " "] {
            let mut matcher = matcher(&constraint);
            let mut text = Vec::new();
            // The character that would go on for ever, as long as it is allowed.
            let prefer = if first == "1" || first == "-" { b"0123456789.eE".as_slice() } else { b" \n".as_slice() };
            for taken in 0..400 {
                if matcher.is_finished() {
                    break;
                }
                let allowed = allowed(&mut matcher);
                let of = |wanted: &[u8]| {
                    let fits = |id: &&u32| {
                        let word = &bytes()[**id as usize];
                        !word.is_empty() && word.iter().all(|byte| wanted.contains(byte))
                    };
                    allowed.iter().find(fits).copied()
                };
                let token = if taken == 0 { of(first.as_bytes()) } else { of(prefer) };
                let Some(token) = token else { break };
                assert!(taken < 120, "no end of {:?}", String::from_utf8_lossy(&text));
                matcher.accept(token).unwrap();
                text.extend(&bytes()[token as usize]);
            }
        }
    }
    // A number that a schema asks for may be longer.
    let long = json!({"const": 123_456_789_012_345_678_901_234_567_f64});
    let text = draw(&Constraint::JsonSchema(long.clone()), &mut Random(1));
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), long["const"]);
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let schema = |schema: Value| Constraint::JsonSchema(schema);
    let deep = (0..200).fold(json!({}), |inner, _| json!({"items": inner}));
    let many = Constraint::Choices((0..300_000).map(|i| i.to_string()).collect());
    for (constraint, words) in [
        (schema(json!({"type": "object", "dependentRequired": {}})), "dependentRequired"),
        (schema(json!({"type": "string", "format": "no-such-format"})), "no-such-format"),
        (schema(json!({"oneOf": [{"type": "string"}, {"maxLength": 3}]})), "oneOf"),
        (schema(json!({"$ref": "#/$defs/missing"})), "missing"),
        (schema(json!({"$ref": "https://example.com/schema.json"})), "example.com"),
        (schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "minimum"),
        (schema(json!({"type": "nothing"})), "nothing"),
        (schema(json!({"x-guidance": {"lenient": true}, "not": {}})), "leave that out"),
        (schema(json!(false)), "allows nothing"),
        (schema(json!([])), "must be an object"),
        (schema(deep), "levels"),
        (schema(json!({"type": "string", "pattern": "("})), "JSON schema"),
        (Constraint::Regex("(".into()), "unclosed group"),
        (Constraint::Regex(r"a(?=b)".into()), "regular expression"),
        (Constraint::Regex("x".repeat(300_000)), "bytes"),
        (Constraint::Choices(vec![]), "empty"),
        (Constraint::Choices(vec!["a".into(), String::new()]), "empty"),
        (many, "bytes"),
        (Constraint::Grammar("root ::= \"a\"".into()), "Lark"),
        (Constraint::Grammar("start: missing".into()), "missing"),
        (Constraint::Grammar("".into()), "grammar"),
        (Constraint::Grammar("start: <start_of_turn>".into()), "start_of_turn"),
        (Constraint::Grammar("start: <[106]>".into()), "control tokens"),
    ] {
        match grammars().compile(&constraint) {
            Ok(_) => panic!("accepted: {constraint:?}"),
            Err(e) => {
                let message = e.to_string();
                assert!(message.contains(words), "{words:?} is not in: {message}");
                assert!(message.len() < 600 && !message.contains('\n'), "{message}");
            }
        }
    }
}

/// Constraints that are made to cost: each is refused, or costs no more than others do.
#[test]
fn hostile_constraints_end_soon() {
    let wide: serde_json::Map<String, Value> = (0..2000).map(|i| (format!("p{i}"), json!({"$ref": "#"}))).collect();
    let nested =
        (0..10).fold(json!({"type": "string"}), |inner, _| json!({"anyOf": [inner.clone(), {"items": inner}]}));
    let billion = (0..30).fold(json!({"type": "null"}), |inner, i| {
        json!({"$defs": {format!("d{i}"): inner}, "type": "array", "items": {"$ref": format!("#/$defs/d{i}")}})
    });
    for constraint in [
        Constraint::Regex("(((a{1,1000}){1,1000}){1,1000}){1,1000}".into()),
        Constraint::Regex("(a?){2000}a{2000}".into()),
        Constraint::Regex("(.*a){500}".into()),
        Constraint::Regex(format!("{}a{}", "(".repeat(5000), ")".repeat(5000))),
        Constraint::JsonSchema(json!({"type": "object", "properties": wide})),
        Constraint::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000, "maxLength": 1_000_000_001})),
        Constraint::JsonSchema(json!({"type": "array", "minItems": 1_000_000_000, "items": {"type": "null"}})),
        Constraint::JsonSchema(json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"})),
        Constraint::JsonSchema(nested),
        Constraint::JsonSchema(billion),
        Constraint::JsonSchema((0..60).fold(json!({}), |inner, _| json!({"type": "array", "items": inner}))),
        Constraint::JsonSchema((0..60).fold(json!({}), |inner, _| json!({"properties": {"a": inner}}))),
        Constraint::JsonSchema(json!({"allOf": (0..12).map(|i| {
            json!({"anyOf": (0..12).map(|k| json!({"type": "object", "properties": {format!("p{i}"): {"const": k}}})).collect::<Vec<_>>()})
        }).collect::<Vec<_>>()})),
        Constraint::JsonSchema(json!({"enum": (0..20_000).map(|i| format!("{i} {}", i * 7919)).collect::<Vec<_>>()})),
        Constraint::JsonSchema(json!({"patternProperties": (0..200).map(|i| {
            (format!("^(a{i}|.*b{i}.*)+$"), json!({"type": "integer"}))
        }).collect::<Map<_, _>>()})),
        Constraint::JsonSchema(
            json!({"type": "string", "pattern": "^\\w+([\\.-]?\\w+)*@\\w+([\\.-]?\\w+)*(\\.\\w{2,})+$", "minLength": 5000}),
        ),
        Constraint::Grammar(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))),
        Constraint::Grammar("start: start start | \"a\" | ".into()),
        Constraint::Grammar("start: a a a a a a a a\na: b b b b b b b b\nb: c* c* c* c*\nc: \"x\"*".into()),
        Constraint::Grammar("start: start".into()),
    ] {
        let shown = format!("{constraint:?}").chars().take(80).collect::<String>();
        let started = std::time::Instant::now();
        let Ok(grammar) = grammars().compile(&constraint) else {
            assert!(started.elapsed().as_secs() < 20, "{shown} takes {:?}", started.elapsed());
            continue;
        };
        let mut matcher = grammar.matcher();
        for _ in 0..30 {
            if matcher.is_finished() {
                break;
            }
            let Ok(mask) = matcher.mask() else { break };
            let token = (0..mask.len() as u32 * 32).find(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1);
            let token = token.unwrap_or_else(|| panic!("no token: {shown}"));
            if matcher.accept(token).is_err() {
                break;
            }
        }
        assert!(started.elapsed().as_secs() < 20, "{shown} takes {:?}", started.elapsed());
    }
}

/// A schema of up to `depth` levels, of what [`is_valid`] knows.
fn random_schema(random: &mut Random, depth: usize) -> Value {
    let kinds = if depth == 0 { 7 } else { 10 };
    match random.below(kinds) {
        0 => json!({"type": "null"}),
        1 => json!({"type": "boolean"}),
        2 => {
            let least = random.below(2000) as i64 - 1000;
            match random.below(3) {
                0 => json!({"type": "integer"}),
                1 => json!({"type": "integer", "minimum": least}),
                _ => json!({"type": "integer", "minimum": least, "maximum": least + random.below(500) as i64}),
            }
        }
        3 => {
            let least = random.below(2000) as f64 / 8.0 - 100.0;
            match random.below(3) {
                0 => json!({"type": "number"}),
                1 => json!({"type": "number", "exclusiveMaximum": least}),
                _ => json!({"type": "number", "minimum": least, "maximum": least + 0.5 + random.below(50) as f64}),
            }
        }
        4 => match random.below(4) {
            0 => json!({"type": "string", "pattern": "^[a-c]{1,3}(-[0-9]+)?$", "maxLength": 8}),
            1 => json!({"type": "string", "format": "date"}),
            2 => json!({"type": "string", "minLength": random.below(3), "maxLength": 3 + random.below(6)}),
            _ => json!({"type": ["string", "null"], "maxLength": 6}),
        },
        5 => json!({"enum": [1, "two", [3, null], {"four": 4.5}, "f\u{fc}nf \"quoted\"", true]}),
        6 => json!({"$ref": "#/$defs/leaf"}),
        7 => {
            let least = random.below(3);
            let items = random_schema(random, depth - 1);
            json!({"type": "array", "items": items, "minItems": least, "maxItems": least + random.below(3)})
        }
        8 => json!({"anyOf": [random_schema(random, depth - 1), random_schema(random, depth - 1)]}),
        _ => {
            let names = ["a", "the name", "\u{e9}", "\"", "n1"];
            let count = random.below(4);
            let properties: Map<String, Value> =
                names[..count].iter().map(|name| ((*name).to_owned(), random_schema(random, depth - 1))).collect();
            let required: Vec<&str> = names[..count].iter().filter(|_| random.coin()).copied().collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

/// A schema that has what others refer to.
fn random_root(random: &mut Random) -> Value {
    let mut schema = random_schema(random, 3);
    schema["$defs"] = json!({"leaf": random_schema(random, 0)});
    if schema["$defs"]["leaf"].get("$ref").is_some() {
        schema["$defs"]["leaf"] = json!({"type": "boolean"});
    }
    schema
}

/// Whether a value is what a schema of [`random_schema`] describes.
fn is_valid(value: &Value, schema: &Value, root: &Value) -> bool {
    if schema.get("$ref").is_some() {
        return is_valid(value, &root["$defs"]["leaf"], root);
    }
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|option| is_valid(value, option, root));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    let size = |name: &str, default: usize| schema[name].as_u64().map_or(default, |size| size as usize);
    let bound = |name: &str, default: f64| schema[name].as_f64().unwrap_or(default);
    let in_range = |x: f64| {
        let above = x >= bound("minimum", f64::NEG_INFINITY);
        above && x <= bound("maximum", f64::INFINITY) && x < bound("exclusiveMaximum", f64::INFINITY)
    };
    match (schema["type"].as_str(), value) {
        (Some("null"), Value::Null) | (Some("boolean"), Value::Bool(_)) | (None, Value::Null) => true,
        (Some("integer"), Value::Number(n)) => n.as_f64().is_some_and(|x| x.fract() == 0.0 && in_range(x)),
        (Some("number"), Value::Number(n)) => n.as_f64().is_some_and(in_range),
        (Some("string") | None, Value::String(text)) => {
            let length = text.chars().count();
            let date = |text: &str| {
                let parts: Vec<&str> = text.split('-').collect();
                parts.iter().map(|part| part.len()).eq([4, 2, 2]) && parts.concat().bytes().all(|b| b.is_ascii_digit())
            };
            (size("minLength", 0)..=size("maxLength", usize::MAX)).contains(&length)
                && (schema.get("pattern").is_none() || text.starts_with(['a', 'b', 'c']))
                && (schema.get("format").is_none() || date(text))
        }
        (Some("array"), Value::Array(items)) => {
            (size("minItems", 0)..=size("maxItems", usize::MAX)).contains(&items.len())
                && items.iter().all(|item| is_valid(item, &schema["items"], root))
        }
        (Some("object"), Value::Object(object)) => {
            let known = schema["properties"].as_object().unwrap();
            schema["required"].as_array().unwrap().iter().all(|name| object.contains_key(name.as_str().unwrap()))
                && object.iter().all(|(name, value)| known.get(name).is_some_and(|of| is_valid(value, of, root)))
        }
        _ => false,
    }
}

#[track_caller]
fn assert_valid(text: &str, schema: &Value) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text} for {schema}"));
    assert!(is_valid(&value, schema, schema), "{text} is not valid for {schema}");
}

/// Texts of any tokens that are allowed.
#[test]
fn whatever_is_drawn_is_valid() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..500 {
        let schema = random_root(&mut random);
        assert_valid(&draw(&Constraint::JsonSchema(schema.clone()), &mut random), &schema);
    }
}

/// The demo model on one device.
fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| demo_model(KERNELS, Mesh::SINGLE)).clone()
}

fn engine(model: Arc<Model>, slots: i64) -> Engine {
    let mut engine = Engine::new(model, demo_tokenizer().clone(), slots, 256).unwrap();
    engine.use_grammars(grammars().clone());
    engine
}

fn request(question: &str, max_tokens: usize, constraint: Option<Constraint>) -> Request {
    let prompt = demo_tokenizer().encode_chat(&[Message::user(question)]).unwrap();
    Request { stop_ids: demo_tokenizer().chat_stop_ids(), constraint, ..Request::greedy(prompt, max_tokens) }
}

fn run(engine: &mut Engine, requests: &[Request]) -> Vec<BTreeMap<usize, Result<Answer, String>>> {
    let ids: Vec<RequestId> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut answers: Vec<BTreeMap<usize, Result<Answer, String>>> = vec![BTreeMap::new(); ids.len()];
    let place = |id: RequestId| ids.iter().position(|known| *known == id).unwrap();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Finished { id, index, answer } => drop(answers[place(id)].insert(index, Ok(answer))),
                Event::Failed { id, error, .. } => drop(answers[place(id)].insert(0, Err(error))),
                _ => {}
            }
        }
    }
    answers
}

fn texts(answers: &[BTreeMap<usize, Result<Answer, String>>]) -> Vec<Vec<(Vec<u32>, String, FinishReason)>> {
    let shown = |answer: &Result<Answer, String>| {
        let answer = answer.as_ref().unwrap();
        (answer.tokens.iter().map(|token| token.id).collect(), answer.text.clone(), answer.finish_reason)
    };
    answers.iter().map(|of| of.values().map(shown).collect()).collect()
}

/// Requests of all samplers under all kinds of constraints, and without one.
fn mixed_requests() -> Vec<Request> {
    let person = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": false
    });
    let constraints = [
        None,
        Some(Constraint::JsonSchema(person)),
        Some(Constraint::Choices(vec!["Paris".into(), "The capital".into(), "It is not known.".into()])),
        None,
        Some(Constraint::Regex("[A-Z][a-z]{2,8}( [a-z]{1,6}){0,3}\\.".into())),
        Some(Constraint::Grammar("start: \"yes\" | \"no\" | \"may\" \"be\"*\n".into())),
        Some(Constraint::JsonObject),
    ];
    let vary = |i: usize| {
        let params = Params {
            temperature: [0.0, 0.8, 1.5][i % 3],
            top_k: [0, 40, 5][i % 3],
            top_p: [1.0, 0.9][i % 2],
            min_p: [0.0, 0.02][i / 2 % 2],
            seed: 1000 + i as u64,
        };
        let penalties =
            if i % 4 == 1 { Penalties { repetition: 1.2, presence: 0.3, frequency: 0.2 } } else { Penalties::NONE };
        let logit_bias = if i % 5 == 2 { vec![(200, 3.0), (300, -100.0)] } else { vec![] };
        let logprobs = (i % 6 == 3).then_some(4);
        let constraint = constraints[i % constraints.len()].clone();
        let n = if i % 11 == 7 { 2 } else { 1 };
        Request {
            params,
            penalties,
            logit_bias,
            logprobs,
            n,
            ..request("What is the capital of France?", 10 + i % 30, constraint)
        }
    };
    (0..42).map(vary).collect()
}

/// Alone, among others with and without constraints, on every lowering and mesh.
#[test]
fn constrained_answers_are_the_same_everywhere() {
    let _alone = several_devices();
    let requests = mixed_requests();
    let mut alone = engine(model(), 1);
    let expected: Vec<_> = requests.iter().flat_map(|one| texts(&run(&mut alone, std::slice::from_ref(one)))).collect();
    for (request, answers) in requests.iter().zip(&expected) {
        let Some(constraint) = &request.constraint else { continue };
        for (_, text, reason) in answers {
            let is_whole = match constraint {
                _ if *reason == FinishReason::Length => continue,
                Constraint::Choices(choices) => choices.contains(text),
                Constraint::Regex(_) => text.starts_with(|c: char| c.is_ascii_uppercase()) && text.ends_with('.'),
                Constraint::Grammar(_) => ["yes", "no"].contains(&&text[..]) || text.starts_with("may"),
                _ => serde_json::from_str::<Map<String, Value>>(text).is_ok(),
            };
            assert!(is_whole, "{text:?} for {constraint:?}");
        }
    }
    // With no constraint around, too.
    let free: Vec<Request> = requests.iter().filter(|request| request.constraint.is_none()).cloned().collect();
    let among_free = texts(&run(&mut engine(model(), 8), &free));
    let of_free: Vec<_> =
        requests.iter().zip(&expected).filter(|(r, _)| r.constraint.is_none()).map(|(_, e)| e).collect();
    assert_eq!(among_free.iter().collect::<Vec<_>>(), of_free);

    for (lowering, mesh) in [
        (KERNELS, Mesh::SINGLE),
        (KERNELS, Mesh { data: 1, model: 2 }),
        (NATIVE, Mesh { data: 2, model: 1 }),
        (Lowering::TPU, Mesh::SINGLE),
        (Lowering::TPU, Mesh { data: 2, model: 2 }),
        (Lowering::CUDA, Mesh { data: 1, model: 4 }),
    ] {
        let model = if (lowering, mesh) == (KERNELS, Mesh::SINGLE) { model() } else { demo_model(lowering, mesh) };
        let found = texts(&run(&mut engine(model, 6), &requests));
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{} on {mesh}, request {i}", lowering.name);
        }
    }
}

#[test]
fn answers_to_random_schemas_are_valid() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let schemas: Vec<Value> = (0..500).map(|_| random_root(&mut random)).collect();
    let asked = |(i, schema): (usize, &Value)| Request {
        params: Params { temperature: [0.0, 1.0, 2.0][i % 3], seed: i as u64, ..Params::GREEDY },
        ..request("Write something in JSON.", 120, Some(Constraint::JsonSchema(schema.clone())))
    };
    let requests: Vec<Request> = schemas.iter().enumerate().map(asked).collect();
    let answers = texts(&run(&mut engine(model(), 32), &requests));
    let mut whole = 0;
    for (schema, answer) in schemas.iter().zip(&answers) {
        let (_, text, reason) = &answer[0];
        if *reason == FinishReason::Stop {
            assert_valid(text, schema);
            whole += 1;
        }
    }
    assert!(whole >= 450, "{whole} of 500 answers came to an end");
}

/// A constraint that cannot be compiled, or that fails during an answer, is that request's alone.
#[test]
fn a_constraint_that_fails_ends_its_own_request() {
    let mut engine = engine(model(), 4);
    let refused = engine.submit(request("x", 5, Some(Constraint::Regex("(".into())))).unwrap_err();
    assert!(matches!(refused, Refusal::BadConstraint(_)), "{refused}");
    assert!(engine.is_idle());

    let plain = request("What is the capital of France?", 20, None);
    let expected = texts(&run(&mut engine, std::slice::from_ref(&plain)));
    // Allowed at its beginning, and then by no token.
    let dead_end = Constraint::Grammar("start: \"a\" REST\nREST: /b[0-9]{1,300}c/ & /b[0-9]{301,400}c/\n".into());
    let hostile = request("x", 20, Some(dead_end));
    let answers = run(&mut engine, &[plain.clone(), Request { n: 2, ..hostile.clone() }, hostile, plain]);
    assert_eq!(texts(&answers[..1]), expected);
    assert_eq!(texts(&answers[3..]), expected);
    for failed in &answers[1..3] {
        let error = failed[&0].as_ref().unwrap_err();
        assert!(error.contains("constraint"), "{error}");
    }
}
