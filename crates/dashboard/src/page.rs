//! The files of the page.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{Response, StatusCode, Uri};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../page/", $name)))),*]
    };
}

const FILES: &[(&str, &str)] = files![
    "api.js",
    "app.css",
    "app.js",
    "bar.js",
    "bytes.js",
    "changes.js",
    "chart.js",
    "chat.js",
    "cluster.js",
    "compare.js",
    "dialog.js",
    "element.js",
    "english.js",
    "gpu.js",
    "index.html",
    "ledger.js",
    "live.js",
    "login.js",
    "memory.js",
    "models.js",
    "proof.js",
    "spanish.js",
    "strategies.js",
    "theme.js",
    "words.js",
];

/// A file by its path; 404 where there is none.
pub(crate) async fn file(uri: Uri) -> Response<Body> {
    let name = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    let Some((_, text)) = FILES.iter().find(|(known, _)| *known == name) else {
        let mut response = Response::new(Body::from("there is no such page\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    let kind = match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        _ => "text/html; charset=utf-8",
    };
    let mut response = Response::new(Body::from(*text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind.parse().unwrap_or(axum::http::HeaderValue::from_static("")));
    // Another version of berth has other files under the same names.
    headers.insert(CACHE_CONTROL, axum::http::HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a page of an operator's second screen may weigh.
    const MOST_BYTES: usize = 150_000;

    #[test]
    fn the_page_is_whole_and_light() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/page");
        let there = std::fs::read_dir(folder).expect("the page's folder").flatten();
        let mut there: Vec<String> =
            there.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        there.sort_unstable();
        let known: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(known, there);
        let bytes: usize = FILES.iter().map(|(_, text)| text.len()).sum();
        assert!(bytes < MOST_BYTES, "{bytes}");
    }
}
