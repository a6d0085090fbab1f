//! The house's floors. `src/lib.rs` lists the rooms from the bottom up. A room imports only rooms
//! above it in that list, and the files of one room import each other in one direction.
//!
//! The sources are read as text: `use` declarations, and paths in code that begin with `crate`,
//! `super` or `self`. In a `mod.rs`, also paths that begin with one of its modules. A name that a
//! file imports or re-exports counts for the file that defines it, so `pub use` is no import
//! itself. What a unit test takes from its own file is none either.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

#[test]
fn rooms_import_only_rooms_below_them() {
    let wrong = imports_upwards(&House::read(Path::new(env!("CARGO_MANIFEST_DIR"))));
    assert!(wrong.is_empty(), "imports that run up the house:\n{}", wrong.join("\n"));
}

/// Describes each import of a room by one that lies below it.
fn imports_upwards(house: &House) -> Vec<String> {
    let floors = house.floors();
    let floor_of = |room: &str| floors.iter().position(|name| name == room);
    let mut wrong = Vec::new();
    for import in house.imports() {
        let (from, to) = (room_of(&import.from), room_of(&import.to));
        if from == to || from == "main" {
            continue;
        }
        let (Some(own), Some(other)) = (floor_of(from), floor_of(to)) else {
            panic!("the table in src/lib.rs does not list {from} or {to}, see {import}");
        };
        if other > own {
            wrong.push(format!("{import}: the room {from} lies below {to}"));
        }
    }
    wrong
}

#[test]
fn the_table_lists_every_room_once() {
    let house = House::read(Path::new(env!("CARGO_MANIFEST_DIR")));
    let mut listed = house.floors();
    let mut rooms: Vec<String> = house.files[""].modules.iter().cloned().collect();
    listed.sort();
    rooms.sort();
    assert_eq!(listed, rooms, "left: the table in src/lib.rs; right: its modules");
}

#[test]
fn files_of_a_room_import_each_other_in_one_direction() {
    let house = House::read(Path::new(env!("CARGO_MANIFEST_DIR")));
    let circles = circles(&house);
    let described: Vec<String> = circles
        .iter()
        .map(|circle| {
            let imports: Vec<String> = circle.iter().map(|import| format!("  {import}")).collect();
            format!("files of {} import each other:\n{}", room_of(&circle[0].from), imports.join("\n"))
        })
        .collect();
    assert!(described.is_empty(), "{}", described.join("\n"));
}

#[test]
fn comments_stay_within_100_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wide = Vec::new();
    for file in House::read(root).files.values() {
        let text = fs::read_to_string(root.join(&file.path)).unwrap();
        let comments = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("//"));
        let too_wide = comments.filter(|(_, line)| line.chars().count() > 100);
        wide.extend(too_wide.map(|(i, line)| format!("{}:{}: {line}", file.path.display(), i + 1)));
    }
    assert!(wide.is_empty(), "comments wider than 100 columns:\n{}", wide.join("\n"));
}

/// An import of one file by another, both named by their module paths, such as `eval::math::latex`.
#[derive(Clone, Debug)]
struct Import {
    from: String,
    to: String,
    file: PathBuf,
    line: usize,
    path: String,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} imports {} ({})", self.file.display(), self.line, self.from, self.to, self.path)
    }
}

/// A file's module: what it declares and what it imports.
struct File {
    path: PathBuf,
    /// The modules that it declares in files of their own.
    modules: BTreeSet<String>,
    /// Names that it imports or re-exports, with the paths that they stand for.
    names: BTreeMap<String, Vec<String>>,
    /// Paths in code, with their lines and whether they are in a unit test.
    paths: Vec<Use>,
}

struct Use {
    path: Vec<String>,
    line: usize,
    in_test: bool,
}

/// All files of `src`, by module path; the crate's own is the empty one.
struct House {
    files: BTreeMap<String, File>,
    table: String,
}

fn room_of(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

impl House {
    fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut todo = vec![(String::new(), PathBuf::from("src/lib.rs")), ("main".into(), "src/main.rs".into())];
        while let Some((module, path)) = todo.pop() {
            let text = fs::read_to_string(root.join(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let file = File::parse(path.clone(), &text);
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let folder = path.parent().unwrap();
            let folder = if ["lib", "main", "mod"].contains(&stem) { folder.to_owned() } else { folder.join(stem) };
            for child in &file.modules {
                let name = if module.is_empty() { child.clone() } else { format!("{module}::{child}") };
                let path = folder.join(format!("{child}.rs"));
                let path = if root.join(&path).exists() { path } else { folder.join(child).join("mod.rs") };
                todo.push((name, path));
            }
            files.insert(module, file);
        }
        Self { files, table: fs::read_to_string(root.join("src/lib.rs")).unwrap() }
    }

    /// The rooms in the order of the table in `src/lib.rs`.
    fn floors(&self) -> Vec<String> {
        let rows = self.table.lines().filter_map(|line| line.strip_prefix("//! | ")?.split_once(" | "));
        let rooms = rows.flat_map(|(names, _)| names.split('`').skip(1).step_by(2).map(str::to_owned));
        rooms.collect()
    }

    /// All imports of a file by another.
    fn imports(&self) -> Vec<Import> {
        let mut imports = Vec::new();
        for (module, file) in &self.files {
            for found in &file.paths {
                let Some(to) = self.resolve(module, file, found) else { continue };
                if to != *module && !to.is_empty() {
                    let (from, path) = (module.clone(), found.path.join("::"));
                    imports.push(Import { from, to, file: file.path.clone(), line: found.line, path });
                }
            }
        }
        imports
    }

    /// The module of the file that a path leads to; none if it leads out of the crate.
    fn resolve(&self, module: &str, file: &File, found: &Use) -> Option<String> {
        let (first, mut rest) = found.path.split_first()?;
        // In a unit test, `super` and `self` are the file itself and its tests.
        if found.in_test && first != "crate" && first != "gemma_pjrt" {
            return None;
        }
        let start = match first.as_str() {
            "crate" | "gemma_pjrt" => String::new(),
            "self" => module.to_owned(),
            "super" => {
                let mut start = parent(module)?;
                while let Some(("super", more)) = rest.split_first().map(|(name, more)| (name.as_str(), more)) {
                    start = parent(&start)?;
                    rest = more;
                }
                start
            }
            name if file.modules.contains(name) => return Some(self.walk(module, &found.path)),
            _ => return None,
        };
        Some(self.walk(&start, rest))
    }

    /// Follows a path from a module, through modules and re-exports, to the file that defines what
    /// it names.
    fn walk(&self, module: &str, path: &[String]) -> String {
        let Some((name, rest)) = path.split_first() else { return module.to_owned() };
        let file = &self.files[module];
        if file.modules.contains(name) {
            let child = if module.is_empty() { name.clone() } else { format!("{module}::{name}") };
            return self.walk(&child, rest);
        }
        match file.names.get(name) {
            Some(source) => {
                let source = Use { path: source.clone(), line: 0, in_test: false };
                // A name of another crate is nobody's.
                self.resolve(module, file, &source).unwrap_or_default()
            }
            None => module.to_owned(),
        }
    }
}

fn parent(module: &str) -> Option<String> {
    if module.is_empty() {
        return None;
    }
    Some(module.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned()))
}

impl File {
    fn parse(path: PathBuf, text: &str) -> Self {
        let code = without_comments_and_strings(text);
        let tests_from = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
        let mut file = Self { path, modules: BTreeSet::new(), names: BTreeMap::new(), paths: vec![] };
        let line_of = |at: usize| code[..at].matches('\n').count() + 1;
        for line in code.lines() {
            let declared = line.strip_prefix("pub ").unwrap_or(line);
            if let Some(name) = declared.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
                file.modules.insert(name.to_owned());
            }
        }
        // Declarations first, so that their parts are not found again as paths in code.
        let mut rest = code.clone().into_bytes();
        for (at, _) in code.match_indices("use ") {
            let before = code[..at].rsplit('\n').next().unwrap_or_default().trim();
            let is_public = before.starts_with("pub");
            if !(before.is_empty() || is_public && !before.contains(';')) {
                continue;
            }
            let end = at + code[at..].find(';').expect("a declaration ends");
            let line = line_of(at);
            for (path, name) in expanded(&code[at + "use ".len()..end]) {
                let in_test = at > tests_from;
                if !in_test {
                    file.names.insert(name, path.clone());
                }
                if !is_public {
                    file.paths.push(Use { path, line, in_test });
                }
            }
            rest[at..end].fill(b' ');
        }
        let rest = String::from_utf8(rest).expect("whole declarations were replaced");
        for (at, path) in paths_in(&rest) {
            file.paths.push(Use { path, line: line_of(at), in_test: at > tests_from });
        }
        file
    }
}

/// The paths of a `use` declaration, each with the name that it brings in.
fn expanded(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    let segments = |text: &str| -> Vec<String> {
        text.split("::").map(|segment| segment.trim().to_owned()).filter(|segment| !segment.is_empty()).collect()
    };
    let Some(open) = tree.find('{') else {
        let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name.trim())));
        let path = segments(path);
        let name = name.map_or_else(|| path.last().cloned().unwrap_or_default(), str::to_owned);
        return vec![(path, name)];
    };
    let prefix = segments(&tree[..open]);
    let inner = &tree[open + 1..tree.rfind('}').expect("braces are balanced")];
    let (mut depth, mut start, mut parts) = (0, 0, vec![]);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    let with_prefix = |(path, name): (Vec<String>, String)| {
        let is_itself = path == ["self"];
        let name = if is_itself && name == "self" { prefix.last().cloned().unwrap_or_default() } else { name };
        (if is_itself { prefix.clone() } else { [prefix.clone(), path].concat() }, name)
    };
    parts.flat_map(expanded).map(with_prefix).collect()
}

/// Paths of at least two segments, with where they begin.
fn paths_in(code: &str) -> Vec<(usize, Vec<String>)> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(colons) = code[from..].find("::").map(|at| from + at) {
        let begin =
            code[..colons].rfind(|c| !is_name(c)).map_or(0, |at| at + code[at..].chars().next().unwrap().len_utf8());
        let mut end = colons;
        while code[end..].starts_with("::") {
            let name = code[end + 2..].find(|c| !is_name(c)).map_or(code.len(), |at| end + 2 + at);
            if name == end + 2 {
                break;
            }
            end = name;
        }
        if end > colons && begin < colons {
            found.push((begin, code[begin..end].split("::").map(str::to_owned).collect()));
        }
        from = end.max(colons + 2);
    }
    found
}

/// The code with spaces in the place of comments and of what is in strings, so that lines and
/// places stay.
fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let blank = |text: &str| text.chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect::<String>();
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if first == '"' {
            closing_quote(rest)
        } else if let Some(hashes) = raw_string(rest) {
            // Not a raw string where `r` only ends a name.
            let end = format!("\"{}", "#".repeat(hashes));
            let open = hashes + 2;
            rest[open..].find(&end).map_or(rest.len(), |at| open + at + end.len())
        } else if first == '\'' {
            char_literal(rest)
        } else {
            0
        };
        let is_in_name = out.ends_with(|c: char| c.is_alphanumeric() || c == '_') && first == 'r';
        if len == 0 || is_in_name {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.push_str(&blank(&rest[..len]));
            rest = &rest[len..];
        }
    }
    out
}

/// Length of the string that begins here.
fn closing_quote(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// How many hashes the raw string that begins here has.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Length of the character that begins here; 0 if it is a lifetime.
fn char_literal(text: &str) -> usize {
    let inner = &text[1..];
    if let Some(escape) = inner.strip_prefix('\\') {
        return escape.char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3);
    }
    let Some(c) = inner.chars().next() else { return 0 };
    if inner[c.len_utf8()..].starts_with('\'') { c.len_utf8() + 2 } else { 0 }
}

/// The imports inside each set of files that can all reach each other.
fn circles(house: &House) -> Vec<Vec<Import>> {
    let imports: Vec<Import> =
        house.imports().into_iter().filter(|import| room_of(&import.from) == room_of(&import.to)).collect();
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for import in &imports {
        reached.entry(&import.from).or_default().insert(&import.to);
    }
    // The closure, by as many steps as there are files at most.
    loop {
        let wider: BTreeMap<&str, BTreeSet<&str>> = reached
            .iter()
            .map(|(from, to)| {
                let further = to.iter().filter_map(|through| reached.get(through)).flatten();
                (*from, to.iter().chain(further).copied().collect())
            })
            .collect();
        if wider == reached {
            break;
        }
        reached = wider;
    }
    let reaches = |a: &str, b: &str| reached.get(a).is_some_and(|to| to.contains(b));
    let mut found: Vec<Vec<Import>> = Vec::new();
    for import in imports.iter().filter(|import| reaches(&import.to, &import.from)) {
        let circle = found
            .iter_mut()
            .find(|circle| reaches(&circle[0].from, &import.from) && reaches(&import.from, &circle[0].from));
        match circle {
            Some(circle) => circle.push(import.clone()),
            None => found.push(vec![import.clone()]),
        }
    }
    found
}

#[test]
fn paths_are_found_in_sources() {
    let text = r##"
//! use crate::comment::X;
mod child;
pub mod open;
pub use child::{Name, inner::Other as Renamed};
use crate::{
    pjrt::{self, Api, error::Result},
    hlo::Shape as S,
};
use super::super::above;
fn f<'a>(x: &'a str) -> char {
    let s = "crate::string::X \" crate::string::Y";
    let r = r#"crate::raw::X"#;
    crate::inline::call(child::here(x));
    '"'
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_test::X;
}
"##;
    let file = File::parse("x.rs".into(), text);
    let paths: Vec<String> =
        file.paths.iter().map(|found| format!("{} {}", found.line, found.path.join("::"))).collect();
    let expected = [
        "6 crate::pjrt",
        "6 crate::pjrt::Api",
        "6 crate::pjrt::error::Result",
        "6 crate::hlo::Shape",
        "10 super::super::above",
        "19 super::*",
        "20 crate::in_test::X",
        "14 crate::inline::call",
        "14 child::here",
    ];
    assert_eq!(paths, expected);
    assert_eq!(file.modules.iter().collect::<Vec<_>>(), ["child", "open"]);
    assert_eq!(file.names["Renamed"], ["child", "inner", "Other"]);
    assert_eq!(file.names["Name"], ["child", "Name"]);
}

#[test]
fn imports_upwards_and_circles_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join("src").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("main.rs", "fn main() { gemma_pjrt::attic::run() }");
    put("lib.rs", "//! | [`cellar`] | low |\n//! | [`attic`] | high |\npub mod attic;\npub mod cellar;\n");
    put("attic.rs", "use crate::cellar::Jar;\n");
    put("cellar/mod.rs", "mod jar;\nmod shelf;\npub use jar::Jar;\npub use shelf::Shelf;\n");
    put("cellar/jar.rs", "pub struct Jar;\n");
    put("cellar/shelf.rs", "use super::Jar;\npub struct Shelf(Jar);\n");
    let house = House::read(dir.path());
    assert_eq!((imports_upwards(&house).len(), circles(&house).len()), (0, 0));

    put("cellar/jar.rs", "pub struct Jar;\nfn look() { crate::attic::look(); super::Shelf::look() }\n");
    let house = House::read(dir.path());
    let expected =
        "src/cellar/jar.rs:2: cellar::jar imports attic (crate::attic::look): the room cellar lies below attic";
    assert_eq!(imports_upwards(&house), [expected]);
    let circle: Vec<String> = circles(&house)[0].iter().map(ToString::to_string).collect();
    let expected = [
        "src/cellar/jar.rs:2: cellar::jar imports cellar::shelf (super::Shelf::look)",
        "src/cellar/shelf.rs:1: cellar::shelf imports cellar::jar (super::Jar)",
    ];
    assert_eq!(circle, expected);
}
