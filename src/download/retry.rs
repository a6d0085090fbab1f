//! Patience with a server or a network that fails for a moment.

use std::{io::ErrorKind, thread, time::Duration};

use ureq::{Body, Error, http::Response};

/// A request is sent this often at most.
const TRIES: u32 = 5;
/// The wait after the first try. It doubles from try to try.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait, even if the server asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Sends a request, and again after a wait while the answer is that of a moment: too many requests,
/// a server that is overloaded or restarting, a name that cannot be resolved, a connection that
/// fails. `server` is for warnings, one before each wait.
pub(crate) fn patiently(
    server: &str,
    mut send: impl FnMut() -> Result<Response<Body>, Error>,
) -> Result<Response<Body>, Error> {
    let mut tries = 1;
    loop {
        let answer = send();
        let Some(problem) = passing_problem(&answer).filter(|_| tries < TRIES) else { return answer };
        let asked_for = answer.as_ref().ok().and_then(retry_after);
        let wait = asked_for.unwrap_or(FIRST_WAIT * 2_u32.pow(tries - 1)).min(LONGEST_WAIT);
        tries += 1;
        tracing::warn!("{server}: {problem}; trying again in {:.1} s (try {tries} of {TRIES})", wait.as_secs_f64());
        thread::sleep(wait);
    }
}

/// Returns the problem with an answer, if it may be gone in a moment.
fn passing_problem(answer: &Result<Response<Body>, Error>) -> Option<String> {
    match answer {
        Ok(response) => passes(response.status().as_u16()).then(|| response.status().to_string()),
        Err(Error::StatusCode(status)) => passes(*status).then(|| status.to_string()),
        Err(error) => {
            let is_passing = match error {
                Error::HostNotFound | Error::ConnectionFailed | Error::Timeout(_) => true,
                // A certificate that is not trusted is invalid data.
                Error::Io(cause) => !matches!(cause.kind(), ErrorKind::InvalidData | ErrorKind::InvalidInput),
                _ => false,
            };
            is_passing.then(|| error.to_string())
        }
    }
}

/// Returns whether the server may answer otherwise in a moment.
fn passes(status: u16) -> bool {
    [408, 429, 500, 502, 503, 504].contains(&status)
}

/// Returns the time that the server asks to wait.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    wait(response.headers().get("retry-after")?.to_str().ok()?.trim())
}

/// Reads seconds or a date (RFC 9110, 10.2.3).
fn wait(value: &str) -> Option<Duration> {
    if let Ok(at) = chrono::DateTime::parse_from_rfc2822(value) {
        return Some(at.signed_duration_since(chrono::Utc::now()).to_std().unwrap_or_default());
    }
    let seconds = value.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_are_seconds_or_dates() {
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let soon = (chrono::Utc::now() + chrono::TimeDelta::seconds(30)).format("%a, %d %b %Y %T GMT").to_string();
        assert!((20..=30).contains(&wait(&soon).unwrap().as_secs()), "{soon}");
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let tries_of = |error: fn() -> Error| {
            let mut tries = 0;
            let answer = patiently("server", || {
                tries += 1;
                // The second answer is final.
                Err(if tries == 1 { error() } else { Error::BadUri("x".into()) })
            });
            assert!(answer.is_err());
            tries
        };
        for error in
            [|| Error::HostNotFound, || Error::StatusCode(503), || Error::Io(ErrorKind::ConnectionReset.into())]
        {
            assert_eq!(tries_of(error), 2, "{}", error());
        }
        for error in [|| Error::StatusCode(404), || Error::Tls("x"), || Error::Io(ErrorKind::InvalidData.into())] {
            assert_eq!(tries_of(error), 1, "{}", error());
        }
    }
}
