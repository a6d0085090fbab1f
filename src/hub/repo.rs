//! Names of models on the hub.

use std::fmt;

/// A model's name on the hub, with a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    /// `organisation/model`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl Repo {
    /// Parses `organisation/model` or `organisation/model@revision`. `None` if the text cannot be
    /// such a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, model) = name.split_once('/')?;
        let word = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && !part.contains("..") && part.chars().all(plain)
        };
        // A revision becomes a path below refs/.
        let revision_is_plain = revision.split('/').all(word);
        (word(organisation) && word(model) && revision_is_plain)
            .then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.name),
            revision => write!(f, "{}@{revision}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let repo = |text| Repo::parse(text).map(|r| (r.name, r.revision));
        let of = |name: &str, revision: &str| Some((name.to_owned(), revision.to_owned()));
        assert_eq!(repo("google/gemma-1.1-2b-it"), of("google/gemma-1.1-2b-it", "main"));
        assert_eq!(repo("google/gemma-2b@refs/pr/4"), of("google/gemma-2b", "refs/pr/4"));
        for path in
            ["gemma", "./gemma/x", "../gemma", "/a/b", "a/b/c", "a/", "a/..", "a/b@../../x", "a b/c", "a/b@", "~/x"]
        {
            assert_eq!(repo(path), None, "{path}");
        }
    }
}
