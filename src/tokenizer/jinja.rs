//! Jinja as transformers sets it up for chat templates: its syntax, tags, filters and functions,
//! with values written as Python writes them. A template comes with a model, from anyone: the steps
//! that it runs, the text that it writes, and the depth and width of its values are limited.

use std::{io, thread};

use chrono::format::{Item, StrftimeItems};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, Value, filters,
    value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args},
};
use serde::Serialize;

use crate::shield::shielded;

const NAME: &str = "chat";
/// The most steps of one rendering. Gemma's template takes about 60 for a message.
const MAX_STEPS: u64 = 1_000_000;
/// The longest text, in bytes.
const MAX_TEXT: usize = 64 << 20;
/// The deepest list of lists that is written. A template can make one that is as deep as it has
/// steps.
const MAX_DEPTH: usize = 100;
/// The most places that a filter may indent or fill.
const MAX_WIDTH: usize = 1000;
/// Stack for dropping the deepest list of lists, which recurses. Only what is used takes memory.
const STACK: usize = 256 << 20;

/// A compiled template.
pub(super) struct Template(Environment<'static>);

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// It is not valid. The message says where.
    pub fn compile(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(write_value);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_unknown_method_callback(|state, value, method, args| {
            if method == "format" {
                check_format(value)?;
            }
            match string_method(value, method, args) {
                Some(result) => result,
                None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
            }
        });
        let format = Value::from_function(filters::format);
        environment.add_filter("format", move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.first().map_or(Ok(()), check_format)?;
            format.call(state, &args)
        });
        for (name, filter) in [
            ("indent", Value::from_function(filters::indent)),
            ("batch", Value::from_function(filters::batch)),
            ("slice", Value::from_function(filters::slice)),
        ] {
            environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
                let args = args.into_values();
                args.iter().skip(1).try_for_each(|argument| check_width(name, argument))?;
                filter.call(state, &args)
            });
        }
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        environment.add_test("sequence", is_sequence);
        environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
        environment.add_function("joiner", minijinja_contrib::globals::joiner);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let source = without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"));
        environment.add_template_owned(NAME, source).map_err(|e| e.to_string())?;
        Ok(Self(environment))
    }

    /// Renders it.
    ///
    /// # Errors
    /// What the template raises, or cannot do with these values.
    pub fn render(&self, context: Value) -> Result<String, String> {
        let render = || {
            let template = self.0.get_template(NAME).expect("added when it was compiled");
            let mut text = LimitedText(Vec::new());
            match shielded(|| template.render_captured_to(context, &mut text).map(|_| ()))? {
                Ok(()) => String::from_utf8(text.0).map_err(|e| e.to_string()),
                Err(error) => Err(explain(&error)),
            }
        };
        thread::scope(|scope| {
            let rendering = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, render);
            let rendering = rendering.map_err(|e| format!("there is no memory for a thread to render it ({e})"))?;
            rendering.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn explain(error: &Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => {
            format!("it takes more than {MAX_STEPS} steps; use a template that loops over the messages alone")
        }
        ErrorKind::WriteFailure => {
            format!("it writes more than {MAX_TEXT} bytes; shorten the messages or the template")
        }
        _ => error.detail().map_or_else(|| error.to_string(), str::to_owned),
    }
}

/// Text of at most [`MAX_TEXT`] bytes.
struct LimitedText(Vec<u8>);

impl io::Write for LimitedText {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.0.len() + text.len() > MAX_TEXT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Checks an argument of a filter that makes so many places.
fn check_width(filter: &str, argument: &Value) -> Result<(), Error> {
    if argument.is_kwargs() {
        return argument.try_iter()?.try_for_each(|name| check_width(filter, &argument.get_item(&name)?));
    }
    match argument.as_usize() {
        Some(width) if width > MAX_WIDTH => {
            let refused = format!("{filter}: {width} is above {MAX_WIDTH}; write a smaller number");
            Err(Error::new(ErrorKind::InvalidOperation, refused))
        }
        _ => Ok(()),
    }
}

/// Checks that no field of a format string is wide: no number in it has more than three digits, or
/// is an argument.
fn check_format(format: &Value) -> Result<(), Error> {
    let text = format.as_str().unwrap_or_default();
    let is_wide = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 3);
    if is_wide || text.contains('*') {
        let refused = "format: a field has more than 999 places, or a width that is an argument; write a number";
        return Err(Error::new(ErrorKind::InvalidOperation, refused));
    }
    Ok(())
}

/// The error of a value that is nested too deeply to be written.
fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value has lists in more than {MAX_DEPTH} lists; write it flat"))
}

/// Replaces `{% generation %}`, with which transformers marks the model's words for training, by a
/// tag that changes nothing else. What is set inside is unknown after it, as in transformers.
fn without_generation_tags(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, rest) = part.split_once("%}").map_or((part, None), |(tag, rest)| (tag, Some(rest)));
        let tag = match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => tag.replace("generation", "with"),
            "endgeneration" => tag.replace("endgeneration", "endwith"),
            _ => tag.to_owned(),
        };
        text.push_str("{%");
        text.push_str(&tag);
        if let Some(rest) = rest {
            text.push_str("%}");
            text.push_str(rest);
        }
    }
    text
}

/// Writes what an expression gives.
fn write_value(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(()),
        _ => python_text(value, 0)?,
    };
    out.write_str(&text).map_err(Error::from)
}

/// A value as Python's `str` writes it.
fn python_text(value: &Value, depth: usize) -> Result<String, Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    let python_repr = |item: &Value| python_repr(item, depth + 1);
    Ok(match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Seq => {
            let items: Result<Vec<String>, Error> = value.try_iter()?.map(|item| python_repr(&item)).collect();
            format!("[{}]", items?.join(", "))
        }
        ValueKind::Map => {
            let entry = |key: Value| Ok(format!("{}: {}", python_repr(&key)?, python_repr(&value.get_item(&key)?)?));
            let entries: Result<Vec<String>, Error> = value.try_iter()?.map(entry).collect();
            format!("{{{}}}", entries?.join(", "))
        }
        ValueKind::Number if !value.is_integer() => python_float(&value.to_string()),
        _ => value.to_string(),
    })
}

/// A decimal number as Python writes it: in powers of ten from 1e16 on, and below 1e-4.
fn python_float(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(x) if x != 0.0 && x.is_finite() && !(1e-4..1e16).contains(&x.abs()) => {
            let scientific = format!("{x:e}");
            let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
            let sign = if exponent.starts_with('-') { '-' } else { '+' };
            format!("{digits}e{sign}{:0>2}", exponent.trim_start_matches('-'))
        }
        _ => text.to_owned(),
    }
}

/// Whether a value is iterable: `none` is not, as in Python.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
}

/// Returns whether a value is a sequence to jinja2. It is if it has a length and items, as strings
/// and mappings have, too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// Python's methods of strings that the library lacks.
fn string_method(value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let text = value.as_str()?;
    if !["removeprefix", "removesuffix", "partition", "rpartition"].contains(&method) {
        return None;
    }
    let part = match from_args::<(&str,)>(args) {
        Ok((part,)) => part,
        Err(error) => return Some(Err(error)),
    };
    let three = |parts: [&str; 3]| Value::from_iter(parts);
    Some(Ok(match method {
        "removeprefix" => text.strip_prefix(part).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(part).unwrap_or(text).into(),
        "partition" => three(text.split_once(part).map_or([text, "", ""], |(before, after)| [before, part, after])),
        _ => three(text.rsplit_once(part).map_or(["", "", text], |(before, after)| [before, part, after])),
    }))
}

/// A value as Python's `repr` writes it.
fn python_repr(value: &Value, depth: usize) -> Result<String, Error> {
    let Some(text) = value.as_str() else { return python_text(value, depth) };
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut repr = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => repr.push_str("\\n"),
            '\r' => repr.push_str("\\r"),
            '\t' => repr.push_str("\\t"),
            c if c == quote || c == '\\' => repr.extend(['\\', c]),
            c if is_printable(c) => repr.push(c),
            c => repr.push_str(&match u32::from(c) {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x10000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    repr.push(quote);
    Ok(repr)
}

/// Returns whether Python's `repr` writes a character without an escape. Rust's `escape_debug` goes
/// by the same categories of Unicode.
fn is_printable(c: char) -> bool {
    // Behind a letter, which a combining mark joins.
    let text = String::from_iter(['a', c]);
    matches!(c, '"' | '\'') || text.escape_debug().eq(text.chars())
}

/// `tojson(ensure_ascii=False, indent=None)` of transformers, which is Python's `json.dumps`.
fn to_json(value: Value, ascii: Option<bool>, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let ascii = ascii.or(options.get("ensure_ascii")?);
    let indent = indent.or(options.get("indent")?);
    options.assert_all_used()?;
    indent.map_or(Ok(()), |indent| check_width("tojson", &Value::from(indent)))?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"));
    let mut bytes = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonJson::new(indent)))
        .map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?;
    if ascii != Some(true) {
        return Ok(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_ascii() => escaped.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    Ok(escaped)
}

/// Python's way to write JSON: `", "` and `": "` between parts on one line, or one part a line.
struct PythonJson {
    indent: Option<usize>,
    depth: usize,
    is_empty: bool,
}

impl PythonJson {
    fn new(indent: Option<usize>) -> Self {
        Self { indent, depth: 0, is_empty: true }
    }

    fn begin<W: ?Sized + std::io::Write>(&mut self, w: &mut W, open: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        if self.depth > MAX_DEPTH {
            return Err(io::Error::other(too_deep().to_string()));
        }
        w.write_all(open)
    }

    fn end<W: ?Sized + std::io::Write>(&mut self, w: &mut W, close: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line(w)?;
        }
        self.is_empty = false;
        w.write_all(close)
    }

    fn next<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.is_empty = false;
        match (first, self.indent) {
            (true, None) => Ok(()),
            (false, None) => w.write_all(b", "),
            (true, Some(_)) => self.new_line(w),
            (false, Some(_)) => {
                w.write_all(b",")?;
                self.new_line(w)
            }
        }
    }

    fn new_line<W: ?Sized + std::io::Write>(&self, w: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(indent) => {
                w.write_all(b"\n")?;
                (0..self.depth).try_for_each(|_| write!(w, "{:indent$}", ""))
            }
            None => Ok(()),
        }
    }
}

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.begin(w, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.end(w, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.next(w, first)
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.begin(w, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.end(w, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.next(w, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// `strftime_now(format)`: the local time.
fn strftime_now(format: &str) -> Result<String, Error> {
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {format:?} is no time format")));
    }
    Ok(chrono::Local::now().format_with_items(items.iter()).to_string())
}
