//! A client of the Python package index that pip is configured for: settings, listings (PEP 503 and
//! 691), downloads.

use std::{collections::HashMap, env, ffi::OsString, fs, io::Read, path::PathBuf, time::Duration};

use super::{PluginError, Result};
use crate::download::{patiently, proxy_for};

/// The settings of pip that are used here.
pub(super) struct PipConfig {
    /// Addresses of the indexes, in the order of search.
    pub indexes: Vec<String>,
    /// File of certificates to trust instead of the system's.
    pub cert: Option<PathBuf>,
    /// True if pip was told not to use an index.
    pub no_index: bool,
}

impl PipConfig {
    /// Reads pip.conf (global, user, environment) and `PIP_*` variables; later ones win, as in pip.
    pub(super) fn read() -> Self {
        let mut files = vec![PathBuf::from("/etc/pip.conf")];
        let home = env::var_os("HOME").map(PathBuf::from);
        if let Some(home) = &home {
            files.push(home.join(".pip/pip.conf"));
        }
        let config = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or(home.map(|h| h.join(".config")));
        files.extend(config.map(|dir| dir.join("pip/pip.conf")));
        files.extend(env::var_os("VIRTUAL_ENV").map(|dir| PathBuf::from(dir).join("pip.conf")));
        files.extend(env::var_os("PIP_CONFIG_FILE").map(PathBuf::from));

        let mut settings = HashMap::new();
        for file in files {
            parse_ini(&fs::read_to_string(file).unwrap_or_default(), &mut settings);
        }
        settings.extend(pip_variables(env::vars_os()));
        let list = |name: &str| -> Vec<String> {
            settings.get(name).map(|v| v.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
        };
        let mut indexes = list("index-url");
        if indexes.is_empty() {
            indexes.push(default_index());
        }
        indexes.extend(list("extra-index-url"));
        let truthy = |value: &String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Self {
            indexes,
            cert: settings.get("cert").map(PathBuf::from),
            no_index: settings.get("no-index").is_some_and(truthy),
        }
    }
}

/// Returns the settings of `PIP_*` variables. Variables that are not UTF-8 are none of pip's.
fn pip_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> impl Iterator<Item = (String, String)> {
    variables.filter_map(|(name, value)| {
        let name = name.to_str()?.strip_prefix("PIP_")?.to_lowercase().replace('_', "-");
        Some((name, value.into_string().ok()?))
    })
}

/// Returns pip's built-in default index.
fn default_index() -> String {
    format!("https://{}.org/simple", "PyPI".to_lowercase())
}

/// Reads the `key = value` lines of the sections for pip's install and download. Continuation lines
/// extend a value.
fn parse_ini(text: &str, settings: &mut HashMap<String, String>) {
    let mut section = String::new();
    let mut last: Option<String> = None;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[') {
            section = name.trim_end_matches(']').to_lowercase();
            last = None;
        } else if !["global", "install", "download"].contains(&section.as_str()) {
            continue;
        } else if let (true, Some(key)) = (line.starts_with([' ', '\t']), &last) {
            let value = settings.entry(key.clone()).or_default();
            *value = format!("{value} {trimmed}");
        } else if let Some((key, value)) = trimmed.split_once(['=', ':']) {
            let key = key.trim().to_lowercase().replace('_', "-");
            settings.insert(key.clone(), value.trim().to_owned());
            last = Some(key);
        }
    }
}

/// A connection to the configured indexes.
pub(super) struct Index {
    agent: ureq::Agent,
    indexes: Vec<String>,
}

impl Index {
    pub(super) fn new(config: &PipConfig) -> Result<Self> {
        use ureq::tls::{PemItem, RootCerts, TlsConfig};
        let roots = match &config.cert {
            None => RootCerts::PlatformVerifier,
            Some(path) => {
                let unusable = |problem: String| PluginError::Index { index: config.indexes[0].clone(), problem };
                let pem = fs::read(path)
                    .map_err(|e| unusable(format!("pip's cert file {} cannot be read ({e})", path.display())))?;
                let items = ureq::tls::parse_pem(&pem);
                let certs: Vec<_> = items
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(cert)) => Some(cert),
                        _ => None,
                    })
                    .collect();
                if certs.is_empty() {
                    return Err(unusable(format!("pip's cert file {} holds no certificate", path.display())));
                }
                RootCerts::new_with_certs(&certs)
            }
        };
        let agent = ureq::Agent::config_builder()
            .proxy(proxy_for(&config.indexes[0]))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("gemma-pjrt/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent, indexes: config.indexes.clone() })
    }

    /// Returns the address of a package's wheel, on the first index that has it.
    pub(super) fn find(&self, package: &str, wheel: &str) -> Result<String> {
        let mut last = None;
        for index in &self.indexes {
            match self.list(index, package) {
                Ok(files) => {
                    if let Some((_, url)) = files.into_iter().find(|(name, _)| name == wheel) {
                        return Ok(url);
                    }
                    let problem = format!("it does not have {wheel}");
                    last = Some(PluginError::Index { index: shown(index), problem });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there is at least one index"))
    }

    /// Returns the names and addresses of a package's files.
    fn list(&self, index: &str, package: &str) -> Result<Vec<(String, String)>> {
        let failed = |problem: String| PluginError::Index { index: shown(index), problem };
        let page = format!("{}/{package}/", index.trim_end_matches('/'));
        const ACCEPT: &str =
            "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";
        let ask = || self.agent.get(&page).header("Accept", ACCEPT).call();
        let mut response = patiently(&shown(index), ask).map_err(|e| failed(e.to_string()))?;
        let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        // An index may answer HTML although JSON was asked for.
        let is_json = content_type.contains("json");
        let body = response.body_mut().with_config().limit(64 << 20).read_to_string();
        let body = body.map_err(|e| failed(e.to_string()))?;
        let files = files_of_page(&page, is_json, &body);
        files.ok_or_else(|| failed(format!("its page of {package} is not a package listing")))
    }

    /// Opens a download. Returns its length, if the server sends it, and a reader.
    pub(super) fn open(&self, url: &str) -> Result<(Option<u64>, impl Read + use<>)> {
        let failed = |problem: String| PluginError::Index { index: shown(url), problem };
        let response = patiently(&shown(url), || self.agent.get(url).call()).map_err(|e| failed(e.to_string()))?;
        let body = response.into_body();
        let length = body.content_length();
        Ok((length, body.into_with_config().limit(4 << 30).reader()))
    }
}

/// Removes user name and password from an address.
fn shown(url: &str) -> String {
    match (url.find("://"), url.find('@')) {
        (Some(start), Some(at)) if start < at => format!("{}***{}", &url[..start + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

/// Returns the names and addresses of the files on a package's page, which is at the address
/// `page`. `None` if it is no listing.
pub fn files_of_page(page: &str, is_json: bool, body: &str) -> Option<Vec<(String, String)>> {
    let files = if is_json { parse_json(body)? } else { parse_html(body) };
    Some(files.into_iter().map(|(name, url)| (name, resolve(page, &url))).collect())
}

/// Reads a listing in JSON (PEP 691), without yanked files. `None` if it is not one.
fn parse_json(body: &str) -> Option<Vec<(String, String)>> {
    let json: serde_json::Value = serde_json::from_str(body).ok()?;
    let yanked = |file: &serde_json::Value| file["yanked"].as_bool() == Some(true) || file["yanked"].is_string();
    let entry =
        |file: &serde_json::Value| Some((file["filename"].as_str()?.to_owned(), file["url"].as_str()?.to_owned()));
    Some(json["files"].as_array()?.iter().filter(|file| !yanked(file)).filter_map(entry).collect())
}

/// Reads a listing in HTML (PEP 503): one `<a>` per file, without yanked files.
fn parse_html(body: &str) -> Vec<(String, String)> {
    let attribute = |tag: &str, name: &str| -> Option<String> {
        let start = tag.find(&format!("{name}=\""))? + name.len() + 2;
        Some(tag[start..].split('"').next()?.replace("&amp;", "&"))
    };
    body.split("<a ")
        .skip(1)
        .filter_map(|part| part.split('>').next())
        .filter(|tag| !tag.contains("data-yanked"))
        .filter_map(|tag| attribute(tag, "href"))
        .map(|href| {
            let url = href.split('#').next().unwrap_or_default().to_owned();
            (url.rsplit('/').next().unwrap_or_default().replace("%2B", "+"), url)
        })
        .collect()
}

/// Resolves `url` relative to the page that contains it.
fn resolve(page: &str, url: &str) -> String {
    if url.contains("://") {
        return url.to_owned();
    }
    let root_end = page.find("://").map_or(0, |i| i + 3);
    let root_end = page[root_end..].find('/').map_or(page.len(), |i| i + root_end);
    if url.starts_with('/') {
        return format!("{}{url}", &page[..root_end]);
    }
    let mut base = page.trim_end_matches('/');
    let mut rest = url;
    while let Some(up) = rest.strip_prefix("../") {
        rest = up;
        base = base.rfind('/').filter(|&i| i >= root_end).map_or(base, |i| &base[..i]);
    }
    format!("{base}/{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_a_listing() {
        let html = r#"<html><a href="../../files/a-1.whl#sha256=00" data-yanked="">a-1.whl</a>
            <a href="https://host/files/a-2.whl#sha256=11" data-requires-python="&gt;=3.9">a-2.whl</a></html>"#;
        assert_eq!(parse_html(html), [("a-2.whl".to_owned(), "https://host/files/a-2.whl".to_owned())]);
        let json = r#"{"files": [{"filename": "a-1.whl", "url": "u1", "yanked": "broken"},
            {"filename": "a-2.whl", "url": "u2", "yanked": false}]}"#;
        assert_eq!(parse_json(json), Some(vec![("a-2.whl".to_owned(), "u2".to_owned())]));
        assert_eq!(parse_json("<html>"), None);
    }

    #[test]
    fn resolves_relative_links() {
        assert_eq!(resolve("http://h:1/simple/a/", "../../f/x.whl"), "http://h:1/f/x.whl");
        assert_eq!(resolve("http://h:1/simple/a/", "/f/x.whl"), "http://h:1/f/x.whl");
        assert_eq!(resolve("http://h:1/simple/a/", "x.whl"), "http://h:1/simple/a/x.whl");
        assert_eq!(resolve("http://h:1/simple/a/", "https://g/x.whl"), "https://g/x.whl");
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(shown("https://me:secret@host/simple"), "https://***@host/simple");
        assert_eq!(shown("https://host/simple"), "https://host/simple");
    }

    #[test]
    fn variables_that_are_not_utf8_have_no_effect() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(b"caf\xe9".to_vec());
        let variables = [
            ("PIP_INDEX_URL".into(), "https://a/simple".into()),
            ("PIP_CERT".into(), broken()),
            (broken(), "x".into()),
            ("LESSOPEN".into(), broken()),
        ];
        let settings: Vec<_> = pip_variables(variables.into_iter()).collect();
        assert_eq!(settings, [("index-url".to_owned(), "https://a/simple".to_owned())]);
    }

    #[test]
    fn reads_pip_conf() {
        let mut settings = HashMap::new();
        let text =
            "[global]\nindex_url = https://a/simple\nextra-index-url =\n  https://b\n  https://c\n[list]\ncert = no\n";
        parse_ini(text, &mut settings);
        assert_eq!(settings["index-url"], "https://a/simple");
        assert_eq!(settings["extra-index-url"].split_whitespace().collect::<Vec<_>>(), ["https://b", "https://c"]);
        assert!(!settings.contains_key("cert"));
    }
}
