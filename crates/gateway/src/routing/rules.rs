//! Which rule a request meets: by its head first, so that its path is known, then by its body.

use hyper::Uri;
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;

use crate::routing::table::Rule;

/// The rules whose conditions on the head a request meets, in their order. The prefix of the first of them that has one
/// is taken out of the request's path, and rules with another prefix are left out.
pub(crate) fn of_head(rules: &[Rule], head: &mut Parts) -> Vec<Rule> {
    let has_prefix = |rule: &Rule| match &rule.path_prefix {
        None => true,
        Some(prefix) => {
            head.uri.path().strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('/'))
        }
    };
    let has_header = |rule: &Rule| match &rule.header {
        None => true,
        Some((name, value)) => {
            head.headers.get_all(name).iter().any(|is| is.as_bytes() == value.as_bytes())
        }
    };
    let met = rules.iter().filter(|rule| has_prefix(rule) && has_header(rule));
    let mut met: Vec<Rule> = met.cloned().collect();
    let Some(prefix) = met.iter().find_map(|rule| rule.path_prefix.clone()) else { return met };
    met.retain(|rule| rule.path_prefix.as_ref().is_none_or(|other| *other == prefix));
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    if let Ok(path) = path[prefix.len()..].parse::<PathAndQuery>() {
        head.uri = Uri::from(path);
    }
    met
}

/// The model that a request goes to that names one in its body.
pub(crate) fn target<'a>(met: &'a [Rule], named: &'a str) -> &'a str {
    let is_met = |rule: &&Rule| rule.model.as_ref().is_none_or(|model| model == named);
    met.iter().find(is_met).map_or(named, |rule| &rule.to)
}
