//! The page: a few hand-written files that are part of the program, so that it also works on a
//! machine without a network. `/` talks to the model, `/compare` compares two sets of parameters.

use std::{io::Write, sync::LazyLock};

use axum::{
    Router,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

/// What the page may do: load its own files and call this server, nothing else. What a model
/// writes can therefore neither run nor send anything, even if the page showed it wrongly.
const CONTENT_SECURITY_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file, and the path at which it is served.
struct File {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

/// A file of `src/serve/page`, served below `/page`.
macro_rules! file {
    ($name:literal, $content_type:expr) => {
        File {
            path: concat!("/page/", $name),
            content_type: $content_type,
            bytes: include_bytes!(concat!("page/", $name)),
        }
    };
}

static FILES: [File; 23] = [
    File { path: "/", content_type: HTML, bytes: include_bytes!("page/index.html") },
    File { path: "/compare", content_type: HTML, bytes: include_bytes!("page/compare.html") },
    file!("answer.js", JAVASCRIPT),
    file!("api.js", JAVASCRIPT),
    file!("app.js", JAVASCRIPT),
    file!("compare.js", JAVASCRIPT),
    file!("dom.js", JAVASCRIPT),
    file!("files.js", JAVASCRIPT),
    file!("generate.js", JAVASCRIPT),
    file!("highlight.js", JAVASCRIPT),
    file!("hover.js", JAVASCRIPT),
    file!("icon.svg", SVG),
    file!("markdown.js", JAVASCRIPT),
    file!("params.js", JAVASCRIPT),
    file!("prompt.js", JAVASCRIPT),
    file!("shell.js", JAVASCRIPT),
    file!("sidebar.js", JAVASCRIPT),
    file!("status.js", JAVASCRIPT),
    file!("store.js", JAVASCRIPT),
    file!("style.css", CSS),
    file!("theme.js", JAVASCRIPT),
    file!("tokens.js", JAVASCRIPT),
    file!("tree.js", JAVASCRIPT),
];

/// The page's files, without a key: they hold nothing of the model's or of anybody's.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().enumerate().fold(Router::new(), |router, (i, file)| {
        router.route(file.path, get(move |headers: HeaderMap| async move { respond(file, &COMPRESSED[i], &headers) }))
    })
}

/// Returns whether a file of the page is served at `path`.
pub(super) fn is_file(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

/// The files, compressed when the first one is asked for: the whole page is 40 kB then.
static COMPRESSED: LazyLock<Vec<Bytes>> = LazyLock::new(|| FILES.iter().map(|file| gzip(file.bytes)).collect());

fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("a vector takes all that is written").into()
}

/// Returns a file, or 304 where the client's copy is the same. Names are not versioned, so that
/// each use asks: a page and a server of two versions would not fit each other.
fn respond(file: &'static File, compressed: &'static Bytes, request: &HeaderMap) -> Response {
    let etag = &*ETAG;
    let headers = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::VARY, HeaderValue::from_static("accept-encoding")),
        (header::ETAG, etag.clone()),
    ];
    let known = request.get_all(header::IF_NONE_MATCH).iter().any(|tags| lists(tags, etag));
    if known {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type))];
    if takes_gzip(request) {
        let encoding = [(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
        return (headers, content_type, encoding, compressed.clone()).into_response();
    }
    (headers, content_type, Bytes::from_static(file.bytes)).into_response()
}

/// Returns whether the client lists gzip, and not with a weight of zero.
fn takes_gzip(request: &HeaderMap) -> bool {
    let lists = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let weight = |parameters: Option<&str>| parameters.and_then(|text| text.trim().strip_prefix("q=")?.parse().ok());
    lists.flat_map(|list| list.split(',')).any(|coding| {
        let mut parts = coding.split(';');
        let is_gzip = parts.next().is_some_and(|name| name.trim().eq_ignore_ascii_case("gzip"));
        is_gzip && weight(parts.next()).unwrap_or(1.0) > 0.0
    })
}

/// One tag for all files, as they change together: the SHA-256 of their contents. It is weak, as a
/// file has it compressed and not.
static ETAG: LazyLock<HeaderValue> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for file in &FILES {
        hash.update(file.bytes);
    }
    let digits: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::try_from(format!("W/\"{digits}\"")).expect("hexadecimal digits are visible ASCII")
});

/// Returns whether a list of tags has this one, weak or not.
fn lists(tags: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(tags), Ok(etag)) = (tags.to_str(), etag.to_str()) else { return false };
    let opaque = |tag| str::strip_prefix(tag, "W/").unwrap_or(tag).trim();
    tags.split(',').map(str::trim).any(|tag| tag == "*" || opaque(tag) == opaque(etag))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, io::Read, path::Path};

    use flate2::read::GzDecoder;

    use super::*;

    fn text(file: &File) -> &'static str {
        std::str::from_utf8(file.bytes).unwrap()
    }

    fn index(name: header::HeaderName, value: &str) -> Response {
        let request = HeaderMap::from_iter([(name, HeaderValue::try_from(value).unwrap())]);
        respond(&FILES[0], &COMPRESSED[0], &request)
    }

    #[test]
    fn all_files_of_the_folder_are_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/page");
        let there: BTreeSet<_> =
            fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        let served: BTreeSet<_> = FILES.iter().map(|file| file.bytes.to_vec()).collect();
        assert_eq!(there.len(), FILES.len());
        assert!(there == served, "a file of src/serve/page is not in FILES");
    }

    #[test]
    fn every_file_that_a_file_names_is_served() {
        for file in &FILES {
            let text = text(file);
            let imports =
                text.split("from \"./").skip(1).map(|rest| format!("/page/{}", rest.split('"').next().unwrap()));
            let links = text.split("\"page/").skip(1).map(|rest| format!("/page/{}", rest.split('"').next().unwrap()));
            for path in imports.chain(links) {
                assert!(is_file(&path), "{} names {path}", file.path);
            }
        }
        assert!(!is_file("/page/"));
        assert!(!is_file("/v1/models"));
    }

    #[test]
    fn a_first_load_is_below_150_kb() {
        let others = ["/compare", "/page/compare.js"];
        let size: usize = FILES.iter().filter(|file| !others.contains(&file.path)).map(|file| file.bytes.len()).sum();
        assert!(size < 150_000, "the page has {size} bytes");
    }

    #[test]
    fn text_never_becomes_markup() {
        for file in &FILES {
            for way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", " style=\""]
            {
                let used = text(file).lines().find(|line| line.contains(way) && !line.trim_start().starts_with("//"));
                assert_eq!(used, None, "{} uses {way}", file.path);
            }
        }
    }

    #[test]
    fn a_file_that_the_client_has_is_not_sent_again() {
        let full = index(header::ACCEPT, "*/*");
        assert_eq!(full.status(), StatusCode::OK);
        assert_eq!(full.headers()[header::CONTENT_SECURITY_POLICY], CONTENT_SECURITY_POLICY);
        assert_eq!(full.headers()[header::CONTENT_TYPE], HTML);
        let tag = full.headers()[header::ETAG].to_str().unwrap();
        for known in [tag, &tag["W/".len()..], &format!("\"other\", {tag}"), "*"] {
            assert_eq!(index(header::IF_NONE_MATCH, known).status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        assert_eq!(index(header::IF_NONE_MATCH, "\"other\"").status(), StatusCode::OK);
    }

    #[test]
    fn a_file_is_compressed_for_those_who_take_it() {
        for (accepted, wanted) in
            [("gzip", true), ("br, GZIP;q=0.5", true), ("br", false), ("gzip;q=0", false), ("x-gzip", false)]
        {
            let response = index(header::ACCEPT_ENCODING, accepted);
            assert_eq!(response.headers().contains_key(header::CONTENT_ENCODING), wanted, "{accepted}");
        }
        let mut text = String::new();
        GzDecoder::new(&COMPRESSED[0][..]).read_to_string(&mut text).unwrap();
        assert_eq!(text.as_bytes(), FILES[0].bytes);
    }
}
