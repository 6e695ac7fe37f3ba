//! Findings as Spanish sentences.

use super::{Finding, percent, span};

/// The sentence of a finding.
pub(super) fn sentence(finding: &Finding) -> String {
    match finding {
        Finding::NoPlace { placed, wanted, reason } => {
            format!("{placed} de {wanted} tienen sitio: {reason}")
        }
        Finding::Risk { instance, node, message } => {
            format!("{instance} en {node} puede no arrancar, en el extremo pesimista: {message}")
        }
        Finding::Note { instance, note } => format!("{instance}: {note}"),
        Finding::RunsButWouldNotStart { instance, message } => format!(
            "{instance} y sus iguales funcionan y no se tocan; arrancados de nuevo con esta versión \
                 acabarían con: {message}"
        ),
        Finding::Left { gpu, bytes, low } => {
            format!("en la GPU más llena, {gpu}, quedan {bytes} ({low} en el extremo pesimista)")
        }
        Finding::LeftTooLittle { bytes, wanted } => {
            format!("quedan {bytes} en la GPU más llena, y deben quedar libres {wanted}")
        }
        Finding::SummedUp { written_gb, gpus, one, needed } => {
            let needed =
                needed.map_or_else(String::new, |needed| format!("; allí necesita {needed}"));
            format!(
                "{written_gb:.2} GB es la suma de {gpus} GPU, pero un modelo tiene que caber en cada \
                     GPU que usa: la más vacía tiene {one}{needed}"
            )
        }
        Finding::SumHolds { written_gb, gb } => {
            format!("se contaba con {written_gb:.2} GB, y hay {gb:.2} GB")
        }
        Finding::SumRestsOnRefused { deployment, verdict } => format!(
            "la suma cuenta con {deployment}, que no arranca ({verdict}): no hay nada que sumar"
        ),
        Finding::CacheKept { model, tokens, today } => format!(
            "la caché menor de {model} guarda {tokens} tokens, el {} de los {today} de hoy",
            percent(*tokens as f64 / (*today).max(1) as f64)
        ),
        Finding::Capacity { model, part } => {
            format!("{model} conserva el {} de los tokens por segundo de hoy", percent(*part))
        }
        Finding::Restarts { count: 0, .. } => "no se toca nada de lo que funciona".to_owned(),
        Finding::Restarts { count: 1, seconds } => format!(
            "se para una instancia; lo que la sustituye está listo en unos {} (una estimación)",
            span(*seconds)
        ),
        Finding::Restarts { count, seconds } => format!(
            "se paran {count} instancias; lo que las sustituye está listo en unos {} (una estimación)",
            span(*seconds)
        ),
        Finding::Has { model, instances, tokens, requests, speed } => format!(
            "{model}: {instances} instancias, {tokens} tokens de caché, {requests:.1} de las peticiones \
                 más largas a la vez, {:.0} ({:.0} .. {:.0}) tokens/s",
            speed.mid, speed.low, speed.high
        ),
        Finding::OtherWeights { model, form } => {
            format!(
                "{model} funciona como {form}: compruebe sus respuestas antes de confiar en ellas"
            )
        }
        Finding::OtherEngine { engine } => format!("hay que instalar y vigilar también {engine}"),
        Finding::Divided { model, parts } => {
            format!(
                "{model} se divide en {parts} despliegues entre los que se reparten las peticiones"
            )
        }
        Finding::Shared { gpus } => format!(
            "varios motores comparten {gpus} GPU y deben arrancar uno tras otro, en este orden"
        ),
        Finding::Unserved { model, requests_per_second } => {
            format!(
                "no se pueden atender {requests_per_second:.2} peticiones por segundo de {model}"
            )
        }
        Finding::AsGood { gpus: [first, second] } => format!(
            "es igual de buena en todo lo comparado; ocupa {second} GPU, la primera {first}: elíjala si \
                 quiere libres las demás"
        ),
        Finding::OnlyOne => "no cabe nada más".to_owned(),
        Finding::WinsWithout(finding) => {
            format!("ganaría si no fuera por esto: {}", sentence(finding))
        }
        Finding::WinsBy { part, model } => {
            format!(
                "ganaría si conservara el {} de los tokens por segundo de {model}",
                percent(*part)
            )
        }
    }
}
