//! The proxy of downloads, which the environment names as for curl and Python's requests.

use ureq::Proxy;

/// Returns the proxy for an address: `HTTPS_PROXY` or `HTTP_PROXY` by its scheme, else `ALL_PROXY`.
/// HTTP and SOCKS proxies are used, except for the hosts of `NO_PROXY`. A warning tells of a value
/// that names no proxy.
pub(crate) fn proxy_for(url: &str) -> Option<Proxy> {
    let get = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let (name, address) = proxy_address(url, get)?;
    let direct = ["no_proxy", "NO_PROXY"].into_iter().find_map(get).unwrap_or_default();
    let proxy = with_exceptions(address.trim(), &direct);
    if proxy.is_none() {
        tracing::warn!(
            "{name} is not used, since it is not the address of a proxy such as http://HOST:PORT or socks5://HOST:PORT; \
             connecting directly"
        );
    }
    proxy
}

/// Returns the variable that names the proxy for an address, and its value. Names in lower case
/// come first, as in curl.
fn proxy_address(url: &str, get: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
    let own = if url.starts_with("http://") { ["http_proxy", "HTTP_PROXY"] } else { ["https_proxy", "HTTPS_PROXY"] };
    own.into_iter().chain(["all_proxy", "ALL_PROXY"]).find_map(|name| Some((name, get(name)?)))
}

/// Returns the proxy of this address, which is not used for the hosts of a list and those below
/// them.
fn with_exceptions(address: &str, direct: &str) -> Option<Proxy> {
    let proxy = Proxy::new(address).ok()?;
    let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(name) = proxy.username() {
        builder = builder.username(name);
    }
    if let Some(password) = proxy.password() {
        builder = builder.password(password);
    }
    for host in direct.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        builder = builder.no_proxy(host);
        if !host.starts_with(['.', '*']) {
            builder = builder.no_proxy(&format!(".{host}"));
        }
    }
    builder.build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_chooses_the_variable() {
        let chosen = |url: &str, set: &[&str]| {
            let get = |name: &str| set.contains(&name).then(|| "x".to_owned());
            proxy_address(url, get).map(|(name, _)| name)
        };
        assert_eq!(chosen("https://h", &["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"]), Some("HTTPS_PROXY"));
        assert_eq!(chosen("https://h", &["HTTPS_PROXY", "https_proxy"]), Some("https_proxy"));
        assert_eq!(chosen("https://h", &["ALL_PROXY", "HTTP_PROXY"]), Some("ALL_PROXY"));
        assert_eq!(chosen("http://h", &["ALL_PROXY", "HTTP_PROXY"]), Some("HTTP_PROXY"));
        assert_eq!(chosen("http://h", &["HTTPS_PROXY"]), None);
    }

    #[test]
    fn addresses_of_http_and_socks_proxies_are_read() {
        let proxy = with_exceptions("socks5://me:s%40crt@host:1080", "localhost, .corp,example.com").unwrap();
        assert_eq!((proxy.host(), proxy.port()), ("host", 1080));
        assert_eq!((proxy.username(), proxy.password()), (Some("me"), Some("s@crt")));
        let is_direct = |url: &str| proxy.is_no_proxy(&url.parse().unwrap());
        for url in ["http://localhost/", "https://a.corp/", "https://example.com/", "https://www.example.com/"] {
            assert!(is_direct(url), "{url}");
        }
        assert!(!is_direct("https://notexample.com/"));
        for address in ["http://host:3128", "host:3128", "socks5h://host", "socks4://host"] {
            assert!(with_exceptions(address, "").is_some(), "{address}");
        }
        for address in ["quic://host", "http://", "a b"] {
            assert!(with_exceptions(address, "").is_none(), "{address}");
        }
    }
}
