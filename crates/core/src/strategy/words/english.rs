//! Findings as English sentences.

use super::{Finding, percent, span};

/// The sentence of a finding.
pub(super) fn sentence(finding: &Finding) -> String {
    match finding {
        Finding::NoPlace { placed, wanted, reason } => {
            format!("{placed} of {wanted} have a place: {reason}")
        }
        Finding::Risk { instance, node, message } => {
            format!("{instance} on {node} may not start, at the pessimistic end: {message}")
        }
        Finding::Note { instance, note } => format!("{instance}: {note}"),
        Finding::RunsButWouldNotStart { instance, message } => format!(
            "{instance} and its like run and stay untouched; started anew with this version they \
                 would end with: {message}"
        ),
        Finding::Left { gpu, bytes, low } => {
            format!("the fullest GPU, {gpu}, has {bytes} left ({low} at the pessimistic end)")
        }
        Finding::LeftTooLittle { bytes, wanted } => {
            format!("{bytes} left on the fullest GPU, and {wanted} shall stay free")
        }
        Finding::SummedUp { written_gb, gpus, one, needed } => {
            let needed =
                needed.map_or_else(String::new, |needed| format!("; it needs {needed} there"));
            format!(
                "{written_gb:.2} GB is a sum over {gpus} GPUs, but a model has to fit on each GPU \
                     that it uses: the emptiest has {one}{needed}"
            )
        }
        Finding::SumHolds { written_gb, gb } => {
            format!("{written_gb:.2} GB were reckoned with, and there are {gb:.2} GB")
        }
        Finding::SumRestsOnRefused { deployment, verdict } => format!(
            "the sum counts on {deployment}, which doesn't start ({verdict}): there is nothing to add up"
        ),
        Finding::CacheKept { model, tokens, today } => format!(
            "the smallest cache of {model} holds {tokens} tokens, {} of today's {today}",
            percent(*tokens as f64 / (*today).max(1) as f64)
        ),
        Finding::Capacity { model, part } => {
            format!("{model} keeps {} of today's tokens a second", percent(*part))
        }
        Finding::Restarts { count: 0, .. } => "nothing that runs is touched".to_owned(),
        Finding::Restarts { count: 1, seconds } => format!(
            "one instance stops; what takes its place is up after some {} (a guess)",
            span(*seconds)
        ),
        Finding::Restarts { count, seconds } => format!(
            "{count} instances stop; what takes their place is up after some {} (a guess)",
            span(*seconds)
        ),
        Finding::Has { model, instances, tokens, requests, speed } => format!(
            "{model}: {instances} instances, {tokens} tokens of cache, {requests:.1} of the longest \
                 requests at once, {:.0} ({:.0} .. {:.0}) tokens/s",
            speed.mid, speed.low, speed.high
        ),
        Finding::OtherWeights { model, form } => {
            format!("{model} runs as {form}: check its answers before you rely on them")
        }
        Finding::OtherEngine { engine } => format!("{engine} has to be installed and watched too"),
        Finding::Divided { model, parts } => {
            format!("{model} is run as {parts} deployments that requests are routed to")
        }
        Finding::Shared { gpus } => {
            format!("engines share {gpus} GPUs and must start one after the other, in this order")
        }
        Finding::Unserved { model, requests_per_second } => {
            format!("{requests_per_second:.2} requests a second of {model} can't be served")
        }
        Finding::AsGood { gpus: [first, second] } => format!(
            "it is as good in all that is compared; it takes {second} GPUs, the first {first}: choose \
                 it if you want the others free"
        ),
        Finding::OnlyOne => "nothing else fits".to_owned(),
        Finding::WinsWithout(finding) => {
            format!("it would win but for this: {}", sentence(finding))
        }
        Finding::WinsBy { part, model } => {
            format!("it would win if it kept {} of {model}'s tokens a second", percent(*part))
        }
    }
}
