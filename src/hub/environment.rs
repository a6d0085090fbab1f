//! Environment variables of the `huggingface_hub` package, with the meaning that they have there
//! (its `constants.py`). An empty variable is one that is not set.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

/// Returns a variable's value by its name.
type Lookup = dyn Fn(&OsStr) -> Option<OsString>;

/// The environment variables.
pub(super) struct Environment {
    get: Box<Lookup>,
}

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Self {
        Self { get: Box::new(|name| env::var_os(name)) }
    }

    fn set(&self, name: &str) -> Option<OsString> {
        (self.get)(OsStr::new(name)).filter(|value| !value.is_empty())
    }

    /// Returns a variable's value if it is UTF-8.
    fn text(&self, name: &str) -> Option<String> {
        self.set(name)?.into_string().ok()
    }

    /// Returns a variable's value as a path, with `~` and variables in it expanded.
    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.expand(&self.set(name)?))
    }

    /// Returns the directory of cache and token: `HF_HOME`, else `$XDG_CACHE_HOME/huggingface`,
    /// else `~/.cache/huggingface`.
    fn home(&self) -> Option<PathBuf> {
        let caches = || self.path("XDG_CACHE_HOME").or_else(|| Some(PathBuf::from(self.set("HOME")?).join(".cache")));
        self.path("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))
    }

    /// Returns the path of a file or directory in [`Self::home`], which is expanded once more: so
    /// does huggingface_hub, where a variable's value may have variables.
    fn in_home(&self, name: &str) -> Option<PathBuf> {
        Some(self.expand(self.home()?.join(name).as_os_str()))
    }

    /// Returns the directory of downloaded models. `None` if no variable says where it is.
    pub fn cache(&self) -> Option<PathBuf> {
        let named = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        named.or_else(|| self.in_home("hub"))
    }

    /// Returns the address of the hub, without a slash at its end.
    pub fn endpoint(&self) -> String {
        let named = self.text("HF_ENDPOINT");
        named.as_deref().unwrap_or("https://huggingface.co").trim().trim_end_matches('/').to_owned()
    }

    /// Returns whether the hub must not be asked.
    pub fn is_offline(&self) -> bool {
        let value = self.text("HF_HUB_OFFLINE").or_else(|| self.text("TRANSFORMERS_OFFLINE"));
        value.is_some_and(|value| is_true(&value))
    }

    /// Returns the token of `HF_TOKEN`, or the one that `hf auth login` wrote.
    pub fn token(&self) -> Option<String> {
        if self.text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value)) {
            return None;
        }
        let clean = |token: String| Some(token.replace(['\r', '\n'], "").trim().to_owned()).filter(|t| !t.is_empty());
        let named = self.text("HF_TOKEN").or_else(|| self.text("HUGGING_FACE_HUB_TOKEN")).and_then(clean);
        let file = || self.path("HF_TOKEN_PATH").or_else(|| self.in_home("token"));
        named.or_else(|| clean(fs::read_to_string(file()?).ok()?))
    }

    /// Replaces a `~` at the beginning by the user's home, or `~name` by that of another user, then
    /// `$NAME` and `${NAME}` by the variables' values. What is not known stays as it is, as in
    /// Python.
    fn expand(&self, text: &OsStr) -> PathBuf {
        let text = text.as_bytes();
        let end = text.iter().position(|&byte| byte == b'/').unwrap_or(text.len());
        let (mut out, mut rest) = match self.home_of(&text[..end]) {
            Some(home) => (home, &text[end..]),
            None => (Vec::new(), text),
        };
        while let Some(at) = rest.iter().position(|&byte| byte == b'$') {
            out.extend(&rest[..at]);
            rest = &rest[at..];
            let (name, len) = variable_name(&rest[1..]);
            match (self.get)(OsStr::from_bytes(name)).filter(|_| !name.is_empty()) {
                Some(value) => out.extend(value.as_bytes()),
                None => out.extend(&rest[..1 + len]),
            }
            rest = &rest[1 + len..];
        }
        out.extend(rest);
        OsString::from_vec(out).into()
    }

    /// Returns what `~` or `~name` stands for, without a slash at its end.
    fn home_of(&self, user: &[u8]) -> Option<Vec<u8>> {
        let home = match user.strip_prefix(b"~")? {
            b"" => self.set("HOME")?.into_vec(),
            name => home_of_user(name)?,
        };
        let end = home.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
        Some(home[..end].to_vec())
    }
}

/// Returns the home of a user whom this machine's own list has.
fn home_of_user(name: &[u8]) -> Option<Vec<u8>> {
    let users = fs::read("/etc/passwd").ok()?;
    let fields = users.split(|&byte| byte == b'\n').map(|line| line.split(|&byte| byte == b':').collect::<Vec<_>>());
    let mut of_user = fields.filter(|fields| fields[0] == name);
    of_user.next()?.get(5).map(|home| home.to_vec())
}

/// Returns the name of the variable that begins after a `$`, and the length of what names it.
fn variable_name(text: &[u8]) -> (&[u8], usize) {
    if let Some(braced) = text.strip_prefix(b"{") {
        return match braced.iter().position(|&byte| byte == b'}') {
            Some(end) => (&braced[..end], end + 2),
            None => (b"", 0),
        };
    }
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').unwrap_or(text.len());
    (&text[..end], end)
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let variables: Vec<(OsString, OsString)> =
            variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let get = move |name: &OsStr| variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        Environment { get: Box::new(get) }
    }

    /// Environments that this program reads in another way than huggingface_hub, and why.
    const OTHERWISE: [(&[(&str, &str)], &str); 12] = [
        (&[("HF_HOME", "")], EMPTY),
        (&[("HF_HOME", ""), ("XDG_CACHE_HOME", "@/xdg")], EMPTY),
        (&[("XDG_CACHE_HOME", "")], EMPTY),
        (&[("HF_HUB_CACHE", "")], EMPTY),
        (&[("HUGGINGFACE_HUB_CACHE", "")], EMPTY),
        (&[("HUGGINGFACE_HUB_CACHE", "@/old"), ("HF_HUB_CACHE", "")], EMPTY),
        (&[("HF_HOME", "@/hf"), ("HUGGINGFACE_HUB_CACHE", "")], EMPTY),
        (&[("HF_TOKEN_PATH", "")], EMPTY),
        (&[("HF_ENDPOINT", "")], EMPTY),
        (&[("HOME", "")], EMPTY),
        (&[("HF_ENDPOINT", " https://mirror.example")], "spaces around an address mean nothing"),
        (&[("HF_ENDPOINT", "https://mirror.example/ ")], "spaces around an address mean nothing"),
    ];
    const EMPTY: &str = "an empty variable is one that is not set, not the directory of the process";

    /// Environments of processes, and what huggingface_hub makes of each: the golden is made by
    /// scripts/reference/hub_environments.py.
    #[test]
    fn environments_mean_what_they_mean_to_huggingface_hub() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/compat/environments.json");
        let golden: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        for (file, text) in golden["files"].as_object().unwrap() {
            let path = std::path::Path::new(dir).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.as_str().unwrap()).unwrap();
        }
        let all = golden["environments"].as_array().unwrap();
        assert!(all.len() >= 120, "{}", all.len());
        let mut otherwise = 0;
        for one in all {
            let variables = one["environment"].as_object().unwrap();
            let given: Vec<(&str, &str)> =
                variables.iter().map(|(n, value)| (n.as_str(), value.as_str().unwrap())).collect();
            let values: Vec<(String, String)> = std::iter::once(("HOME", "@"))
                .filter(|_| !variables.contains_key("HOME"))
                .chain(given.iter().copied())
                .map(|(name, value)| (name.to_owned(), value.replace('@', dir)))
                .collect();
            let values: Vec<(&str, &str)> = values.iter().map(|(n, value)| (n.as_str(), value.as_str())).collect();
            let environment = environment(&values);
            let found = serde_json::json!({
                "cache": environment.cache().map(|path| path.to_str().unwrap().replace(dir, "@")),
                "endpoint": environment.endpoint(),
                "offline": environment.is_offline(),
                "token": environment.token(),
            });
            let mut expected = all[0]["expected"].clone();
            let of_its_own = one["expected"].as_object().unwrap();
            expected.as_object_mut().unwrap().extend(of_its_own.clone());
            let is_as =
                |other: &&[(&str, &str)]| other.len() == given.len() && other.iter().all(|pair| given.contains(pair));
            if OTHERWISE.iter().any(|(other, _)| is_as(other)) {
                assert_ne!(found, expected, "{given:?} is no exception any more");
                otherwise += 1;
            } else {
                assert_eq!(found, expected, "{given:?}");
            }
        }
        assert_eq!(otherwise, OTHERWISE.len());
    }

    #[test]
    fn offline_has_the_truth_values_of_huggingface_hub() {
        let is_offline = |variables: &[(&str, &str)]| environment(variables).is_offline();
        for value in ["1", "ON", "on", "Yes", "TRUE", "true"] {
            assert!(is_offline(&[("HF_HUB_OFFLINE", value)]), "{value}");
            assert!(is_offline(&[("TRANSFORMERS_OFFLINE", value)]), "{value}");
        }
        for value in ["", "0", "false", "no", "off", "2", "y", " 1"] {
            assert!(!is_offline(&[("HF_HUB_OFFLINE", value)]), "{value:?}");
        }
        assert!(!is_offline(&[]));
        assert!(!is_offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]), "the first one that is set");
        assert!(is_offline(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")]));
    }

    #[test]
    fn paths_are_expanded() {
        let cache = |variables: &[(&str, &str)]| {
            let all = [&[("HOME", "/home/me"), ("SCRATCH", "/scratch/me")], variables].concat();
            environment(&all).cache().unwrap().to_str().unwrap().to_owned()
        };
        for (variables, expected) in [
            (&[][..], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "~/c")], "/home/me/c/huggingface/hub"),
            (&[("HF_HOME", "~/hf")], "/home/me/hf/hub"),
            (&[("HF_HOME", "~")], "/home/me/hub"),
            (&[("HF_HOME", "$SCRATCH/hf"), ("XDG_CACHE_HOME", "/x")], "/scratch/me/hf/hub"),
            (&[("HF_HOME", "${SCRATCH}hf")], "/scratch/mehf/hub"),
            (&[("HF_HOME", "/x"), ("HUGGINGFACE_HUB_CACHE", "~/old")], "/home/me/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "$SCRATCH")], "/scratch/me"),
            (&[("HF_HUB_CACHE", "/a~/$NOT_SET/${/$/x$")], "/a~/$NOT_SET/${/$/x$"),
        ] {
            assert_eq!(cache(variables), expected, "{variables:?}");
        }
        assert_eq!(environment(&[]).cache(), None);
    }

    #[test]
    fn tokens_are_stripped() {
        let token = |variables: &[(&str, &str)]| environment(variables).token();
        assert_eq!(token(&[("HF_TOKEN", " hf_a\r\n")]).as_deref(), Some("hf_a"));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_b")]).as_deref(), Some("hf_b"));
        assert_eq!(token(&[("HF_TOKEN", "hf_a"), ("HUGGING_FACE_HUB_TOKEN", "hf_b")]).as_deref(), Some("hf_a"));
        assert_eq!(token(&[("HF_TOKEN", " "), ("HUGGING_FACE_HUB_TOKEN", "hf_b")]), None);
        assert_eq!(token(&[("HF_TOKEN", "hf_a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "yes")]), None);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("t"), "hf_c\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(token(&[("HOME", home), ("HF_TOKEN_PATH", "~/t")]).as_deref(), Some("hf_c"));
    }

    #[test]
    fn values_that_are_not_utf8_are_paths_all_the_same() {
        let get = |_: &OsStr| Some(OsString::from_vec(b"/caf\xe9".to_vec()));
        let environment = Environment { get: Box::new(get) };
        assert_eq!(environment.cache().unwrap().as_os_str().as_bytes(), b"/caf\xe9");
        assert!(!environment.is_offline());
        assert_eq!(environment.endpoint(), "https://huggingface.co");
    }
}
