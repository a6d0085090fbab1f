//! Datasets on disk, in the layouts of the Hugging Face hub, by configuration and split.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use super::{
    Error, Result,
    data_file::{Doc, FileFormat},
};

/// Returns a digest by which two lists of rows can be compared.
pub fn digest(docs: &[Doc]) -> String {
    let mut digest = Sha256::new();
    docs.iter().for_each(|doc| digest.update(format!("{doc:?}")));
    format!("{:x}", digest.finalize())
}

/// A dataset on disk.
pub struct Dataset {
    dir: PathBuf,
    name: String,
    config: Option<String>,
}

impl Dataset {
    /// Finds the dataset `org/name` below `root`: as `org/name`, `name`, or in the layout of the
    /// hub's cache. There, of several snapshots, it takes the one that `refs/main` names.
    ///
    /// # Errors
    /// It is not there. The message says how to get it.
    pub fn open(root: &Path, name: &str, config: Option<&str>) -> Result<Self> {
        let short = name.rsplit('/').next().unwrap_or(name);
        let cached = root.join(format!("datasets--{}", name.replace('/', "--")));
        let direct = [root.join(name), root.join(short)].into_iter().find(|dir| dir.is_dir());
        let dir = direct.or_else(|| snapshot(&cached)).ok_or_else(|| {
            let fetch = match name.strip_prefix("github.com/") {
                Some(_) => format!("git clone https://{name} {short}"),
                None => format!("hf download --repo-type dataset {name} --local-dir {name}"),
            };
            Error::Invalid(format!(
                "the dataset {name} is not in {}: put it there as {name}/ or {short}/, in the layout that it is published in (for \
                 example with `{fetch}`)",
                root.display()
            ))
        })?;
        Ok(Self { dir, name: name.to_owned(), config: config.map(str::to_owned) })
    }

    /// Reads all rows of a split, in order.
    ///
    /// # Errors
    /// The split has no files or no rows, or a file cannot be read.
    pub fn split(&self, split: &str) -> Result<Vec<Doc>> {
        self.rows(&self.files(split)?, &format!("the split {split}"))
    }

    /// Reads all rows of a file, in order. Of text in no known format, each line is the field
    /// `text` of a row.
    ///
    /// # Errors
    /// The file has no rows, or cannot be read.
    pub fn file(&self, name: &str) -> Result<Vec<Doc>> {
        let path = self.dir.join(name);
        if !path.is_file() {
            let message = format!("{} has no file {name}: download it again", self.dir.display());
            return Err(Error::Invalid(message));
        }
        let format = FileFormat::of(name).map_or(FileFormat::Lines, |(format, _)| format);
        self.rows(&[(format, path)], name)
    }

    fn rows(&self, files: &[DataFile], of: &str) -> Result<Vec<Doc>> {
        let mut docs = Vec::new();
        for (format, file) in files {
            docs.extend(format.read(file).map_err(|reason| {
                let message = format!("{} cannot be read: {reason}; correct it, or download it again", file.display());
                Error::Invalid(message)
            })?);
        }
        if docs.is_empty() {
            return Err(Error::Invalid(format!("{of} of {} has no rows", self.name)));
        }
        Ok(docs)
    }

    /// Returns the split's files. Looks for `{config}/{split}-*` and `{config}/{split}/*`, the same
    /// below `data`, and the same without a configuration; then in the only folder that has such
    /// files.
    fn files(&self, split: &str) -> Result<Vec<DataFile>> {
        let in_folder = |folder: &Path| {
            let found = list(folder, |name| is_of_split(name, split));
            if found.is_empty() { list(&folder.join(split), |_| true) } else { found }
        };
        let folders = match &self.config {
            Some(config) => vec![self.dir.join(config), self.dir.join("data").join(config)],
            None => vec![self.dir.join("data"), self.dir.clone(), self.dir.join("default")],
        };
        if let Some(found) = folders.iter().map(|folder| in_folder(folder)).find(|found| !found.is_empty()) {
            return complete(found, split);
        }
        if self.config.is_none() {
            let below = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let found: Vec<Vec<DataFile>> =
                below.map(|dir| in_folder(&dir)).filter(|found| !found.is_empty()).collect();
            if let [only] = &found[..] {
                return complete(only.clone(), split);
            }
        }
        let config = self.config.as_ref().map_or(String::new(), |config| format!(" of the configuration {config}"));
        Err(Error::Invalid(format!(
            "{} has no files of the split {split}{config}: expected such as {}",
            self.dir.display(),
            Path::new(self.config.as_deref().unwrap_or("data"))
                .join(format!("{split}-00000-of-00001.parquet"))
                .display()
        )))
    }
}

/// Returns the snapshot of a dataset in the hub's cache: the one that `refs/main` names, or the
/// newest one.
fn snapshot(cached: &Path) -> Option<PathBuf> {
    let folder = cached.join("snapshots");
    let named = fs::read_to_string(cached.join("refs/main")).ok().filter(|name| !name.trim().is_empty());
    if let Some(named) = named.map(|name| folder.join(name.trim())).filter(|dir| dir.is_dir()) {
        return Some(named);
    }
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let all: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    let age = |dir: &&PathBuf| {
        let modified = fs::metadata(dir).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        (modified, (*dir).clone())
    };
    let newest = all.iter().max_by_key(age)?;
    if all.len() > 1 {
        tracing::warn!(
            "{} has {} snapshots, and refs/main names none of them: the newest one, {}, is used",
            cached.display(),
            all.len(),
            newest.file_name().unwrap_or_default().display()
        );
    }
    Some(newest.clone())
}

type DataFile = (FileFormat, PathBuf);

/// Returns the files of a split, of which none may be missing: fewer rows would give another score.
fn complete(files: Vec<DataFile>, split: &str) -> Result<Vec<DataFile>> {
    let part = |(_, path): &DataFile| {
        let name = path.file_name()?.to_str()?;
        let words: Vec<&str> = name.split(['-', '.']).collect();
        let at = words.iter().position(|&word| word == "of")?;
        let number = |word: Option<&&str>| word?.parse::<usize>().ok();
        Some((number(words.get(at + 1))?, number(words.get(at.checked_sub(1)?))?))
    };
    let parts: BTreeSet<(usize, usize)> = files.iter().filter_map(part).collect();
    let totals = parts.iter().map(|&(total, _)| total).collect::<BTreeSet<_>>().into_iter();
    let mut missing = totals.flat_map(|total| (0..total).map(move |number| (total, number)));
    if let Some((total, number)) = missing.find(|part| !parts.contains(part)) {
        let folder = files[0].1.parent().unwrap_or(Path::new(".")).display();
        return Err(Error::Invalid(format!(
            "{folder} lacks {split}-{number:05}-of-{total:05} of the split {split}; download the dataset again"
        )));
    }
    Ok(files)
}

/// Returns a folder's data files whose names, without the format's ending, are wanted, in order. Of
/// several formats it takes one: they are copies of the same rows.
fn list(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<DataFile> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((format, stem)) = FileFormat::of(name).filter(|(_, stem)| path.is_file() && is_wanted(stem)) {
            found.push((format, name[stem.len()..].to_owned(), path));
        }
    }
    found.sort();
    let first = found.first().map(|(_, ending, _)| ending.clone());
    let of_first = found.into_iter().filter(|(_, ending, _)| Some(ending) == first.as_ref());
    of_first.map(|(format, _, path)| (format, path)).collect()
}

/// Returns whether a file is of this split, by its name without the format's ending: `split`,
/// `split-00000-of-00001`, the same with a hash, or `split_0`.
fn is_of_split(stem: &str, split: &str) -> bool {
    let Some(rest) = stem.strip_prefix(split) else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_hash = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some(rest) = rest.strip_prefix(['-', '_', '.']) else { return rest.is_empty() };
    match rest.split('-').collect::<Vec<_>>()[..] {
        [number] => is_number(number),
        [number, "of", total] => is_number(number) && is_number(total),
        [number, "of", total, hash] => is_number(number) && is_number(total) && is_hash(hash),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hubs_layouts_are_found() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{\"x\": 1}\n").unwrap();
        };
        let rows = |name: &str, config: Option<&str>| {
            Dataset::open(root.path(), name, config).and_then(|d| d.split("test")).map(|rows| rows.len())
        };
        put("org/a/data/test-00000-of-00002.jsonl");
        put("org/a/data/test-00001-of-00002.jsonl");
        put("org/a/data/train.jsonl");
        put("b/b/test-00000-of-00001-abc.jsonl"); // one configuration, which need not be named
        put("c/one/test/0000.jsonl");
        put("c/two/test/0000.jsonl");
        put("datasets--org--d/snapshots/123/data/two/test.jsonl");
        assert_eq!(rows("org/a", None).unwrap(), 2);
        assert_eq!(rows("org/b", None).unwrap(), 1);
        assert_eq!(rows("org/c", Some("two")).unwrap(), 1);
        assert_eq!(rows("org/d", Some("two")).unwrap(), 1);
        assert!(rows("org/c", None).unwrap_err().to_string().contains("no files of the split test"));
        assert!(rows("org/e", None).unwrap_err().to_string().contains("org/e is not in"));
    }

    #[test]
    fn a_missing_part_is_an_error() {
        let file = |name: &str| (FileFormat::Parquet, PathBuf::from("data").join(name));
        let check = |names: &[&str]| complete(names.iter().map(|name| file(name)).collect(), "test");
        for whole in [
            &["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"][..],
            &["test-00000-of-00001-6f3d1a.parquet"],
            &["test.parquet"],
            &["test_0.parquet", "test_2.parquet"],
        ] {
            assert_eq!(check(whole).unwrap().len(), whole.len());
        }
        let error = check(&["test-00000-of-00002-abc.parquet"]).unwrap_err().to_string();
        assert!(error.contains("data lacks test-00001-of-00002"), "{error}");
    }

    #[test]
    fn files_are_read_by_their_names_too() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        fs::write(root.path().join("a/pro.txt.test"), "1 One.\r\n\n2 Two.\n").unwrap();
        let dataset = Dataset::open(root.path(), "github.com/org/a", None).unwrap();
        let rows = dataset.file("pro.txt.test").unwrap();
        assert_eq!(serde_json::json!(rows), serde_json::json!([{"text": "1 One."}, {"text": "2 Two."}]));
        assert!(dataset.file("anti.txt.test").unwrap_err().to_string().contains("has no file anti.txt.test"));
        let missing = Dataset::open(root.path(), "github.com/org/b", None).err().unwrap().to_string();
        assert!(missing.contains("git clone https://github.com/org/b b"), "{missing}");
    }

    #[test]
    fn a_split_whose_name_begins_like_another_is_not_it() {
        for stem in ["test", "test-00000-of-00001", "test-00000-of-00002-6f3d1a", "test_0", "test.1", "test-12"] {
            assert!(is_of_split(stem, "test"), "{stem}");
        }
        for stem in ["test_extra", "test_extra-00000-of-00001", "test-hard-00000-of-00001", "test.hard", "tests", "tes"]
        {
            assert!(!is_of_split(stem, "test"), "{stem}");
        }
        assert!(is_of_split("test_extra-00000-of-00001", "test_extra"));
    }

    #[test]
    fn rows_are_read_once_where_a_split_is_there_in_several_formats() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("a/data");
        fs::create_dir_all(data.join("test")).unwrap();
        for (name, text) in [
            ("test.json", "[{\"x\": 1}]"),
            ("test.jsonl", "{\"x\": 1}"),
            ("test.csv", "x\n1\n"),
            ("test_extra.json", "[{\"x\": 2}]"),
            ("test/0.json", "[{\"x\": 3}]"),
        ] {
            fs::write(data.join(name), text).unwrap();
        }
        let rows = Dataset::open(root.path(), "org/a", None).unwrap().split("test").unwrap();
        assert_eq!(serde_json::json!(rows), serde_json::json!([{"x": 1}]));
    }

    #[test]
    fn of_several_snapshots_main_is_taken_or_else_the_newest() {
        let root = tempfile::tempdir().unwrap();
        let cached = root.path().join("datasets--org--a");
        let main = |name: &str| {
            fs::create_dir_all(cached.join("refs")).unwrap();
            fs::write(cached.join("refs/main"), name).unwrap();
        };
        for (name, days) in [("aaa", 1), ("bbb", 3), ("ccc", 2)] {
            let dir = cached.join("snapshots").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("test.jsonl"), format!("{{\"x\": {name:?}}}")).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(days * 86_400);
            fs::File::open(&dir).unwrap().set_modified(time).unwrap();
        }
        let found = || {
            let rows = Dataset::open(root.path(), "org/a", None).unwrap().split("test").unwrap();
            rows[0]["x"].as_str().unwrap().to_owned()
        };
        assert_eq!(found(), "bbb");
        main("ccc\n");
        assert_eq!(found(), "ccc");
        main("ddd"); // it is not there
        assert_eq!(found(), "bbb");
    }
}
