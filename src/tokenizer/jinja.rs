//! Jinja as transformers sets it up for chat templates: its syntax, tags, filters and functions,
//! with values written as Python writes them.

use chrono::format::{Item, StrftimeItems};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind},
};
use serde::Serialize;

const NAME: &str = "chat";

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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
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
        let template = self.0.get_template(NAME).expect("added when it was compiled");
        template.render(context).map_err(|e| e.detail().map_or_else(|| e.to_string(), str::to_owned))
    }
}

/// Replaces `{% generation %}`, with which transformers marks the model's words for training, by a
/// tag that changes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, rest) = part.split_once("%}").map_or((part, None), |(tag, rest)| (tag, Some(rest)));
        let tag = match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
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
        _ => python_text(value)?,
    };
    out.write_str(&text).map_err(Error::from)
}

/// A value as Python's `str` writes it.
fn python_text(value: &Value) -> Result<String, Error> {
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

/// A value as Python's `repr` writes it.
fn python_repr(value: &Value) -> Result<String, Error> {
    let Some(text) = value.as_str() else { return python_text(value) };
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut repr = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => repr.push_str("\\n"),
            '\r' => repr.push_str("\\r"),
            '\t' => repr.push_str("\\t"),
            c if c == quote || c == '\\' => repr.extend(['\\', c]),
            c => repr.push(c),
        }
    }
    repr.push(quote);
    Ok(repr)
}

/// `tojson(indent=None, ensure_ascii=False)` of transformers, which is Python's `json.dumps`.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
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
            Some(indent) => write!(w, "\n{:1$}", "", indent * self.depth),
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
