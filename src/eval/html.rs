//! Results as one self-contained HTML page: a chart of tasks beside the model card's scores, and
//! one of each group's subjects.

use std::fmt::Write;

use super::{Evaluation, MetricResult, Summary, group_results};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;\
border-bottom:1px solid #ddd}td:first-child,th:first-child,td.text{text-align:left}svg text{font:12px system-ui,sans-serif;fill:#222}\
svg .axis{stroke:#ddd}svg .bar{fill:#4a7fb5}svg .error{stroke:#222;stroke-width:1.5}svg .two{stroke:#c4661f;stroke-width:3}\
svg .seven{stroke:#7a3f98;stroke-width:3}";

/// One bar of a chart.
struct ChartBar {
    name: String,
    summary: Summary,
    /// The model card's scores of 2B and 7B, in percent.
    card: Option<[f64; 2]>,
}

/// Returns the page. `about` describes the run, as names and values.
pub fn html(evaluations: &[Evaluation], about: &[(String, String)]) -> String {
    let groups = group_results(evaluations);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>gemma-pjrt eval</title><style>{STYLE}</style>\n<h1>Evaluation by gemma-pjrt</h1>\n<table>\n"
    );
    for (name, value) in about {
        let _ = writeln!(page, "<tr><td>{}</td><td class=\"text\">{}</td></tr>", escaped(name), escaped(value));
    }
    page += "</table>\n<h2>Tasks</h2>\n<p>Bars are this run's scores in percent, with one standard error on either side; marks are the model \
             card's figures for the pretrained <span style=\"color:#c4661f\">2B</span> and \
             <span style=\"color:#7a3f98\">7B</span>.</p>\n";
    let mut bars = Vec::new();
    for group in groups.iter().filter(|group| group.is_whole() || group.is_on_card()) {
        bars.extend(bar(group.name.clone(), group.members[0], &group.results));
    }
    for evaluation in evaluations.iter().filter(|evaluation| evaluation.task.groups.is_empty()) {
        bars.extend(bar(evaluation.task.name.clone(), evaluation, &evaluation.results()));
    }
    page += &chart(&bars);
    // Subjects, by the smallest groups that they are in.
    for group in groups.iter().filter(|group| group.members[0].task.groups.last() == Some(&group.name)) {
        let bar = |member: &&Evaluation| {
            let name = member.task.of_subject.as_ref().unwrap_or(&member.task.name).clone();
            bar(name, member, &member.results())
        };
        let bars: Vec<ChartBar> = group.members.iter().filter_map(bar).collect();
        let _ = write!(page, "<h2>{}</h2>\n{}", escaped(&group.name), chart(&bars));
    }
    page += "<h2>Figures</h2>\n<table>\n<tr><th>task</th><th>shots</th><th>metric</th><th>score</th><th>standard error</th>\
             <th>documents</th></tr>\n";
    let mut rows = |name: &str, shots: usize, results: &[MetricResult]| {
        for result in results {
            let shown = |value: f64| if value.is_nan() { "–".to_owned() } else { format!("{value:.4}") };
            let stderr = result.summary.stderr.map_or(String::new(), shown);
            let (metric, mean, n) = (result.title(), shown(result.summary.mean), result.summary.documents);
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td>{shots}</td><td>{}</td><td>{mean}</td><td>{stderr}</td><td>{n}</td></tr>",
                escaped(name),
                escaped(&metric)
            );
        }
    };
    for group in &groups {
        rows(&group.name, group.members[0].num_fewshot, &group.results);
    }
    for evaluation in evaluations {
        rows(&evaluation.task.name, evaluation.num_fewshot, &evaluation.results());
    }
    page + "</table>\n</html>\n"
}

/// Returns the bar of the result that stands for the task, if there is one.
fn bar(name: String, evaluation: &Evaluation, results: &[MetricResult]) -> Option<ChartBar> {
    let MetricResult { summary, metric, .. } = evaluation.main_result(results)?;
    let card = evaluation.task.card(&name, &metric).map(|card| [card.two_b, card.seven_b]);
    (!summary.mean.is_nan()).then_some(ChartBar { name, summary, card })
}

fn chart(bars: &[ChartBar]) -> String {
    const LEFT: f64 = 230.0;
    const WIDTH: f64 = 560.0;
    const LINE: f64 = 24.0;
    let height = bars.len() as f64 * LINE + 24.0;
    let x = |percent: f64| LEFT + WIDTH * percent.clamp(0.0, 100.0) / 100.0;
    let mut svg = format!("<svg viewBox=\"0 0 {} {height}\" role=\"img\">\n", LEFT + WIDTH + 60.0);
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let at = x(percent);
        let end = height - 20.0;
        let _ = writeln!(svg, "<line class=\"axis\" x1=\"{at}\" x2=\"{at}\" y1=\"0\" y2=\"{end}\"/>");
        let _ = writeln!(svg, "<text x=\"{at}\" y=\"{}\" text-anchor=\"middle\">{percent}</text>", height - 6.0);
    }
    for (i, bar) in bars.iter().enumerate() {
        let (top, mean) = (i as f64 * LINE, 100.0 * bar.summary.mean);
        let middle = top + LINE / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            middle + 4.0,
            escaped(&bar.name)
        );
        let width = x(mean) - LEFT;
        let _ =
            writeln!(svg, "<rect class=\"bar\" x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"14\"/>", top + 5.0);
        if let Some(stderr) = bar.summary.stderr.map(|stderr| 100.0 * stderr) {
            let (from, to) = (x(mean - stderr), x(mean + stderr));
            let _ = writeln!(
                svg,
                "<line class=\"error\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{middle}\" y2=\"{middle}\"/>"
            );
        }
        for (class, figure) in bar.card.iter().flat_map(|card| ["two", "seven"].into_iter().zip(card)) {
            let at = x(*figure);
            let (y1, y2) = (top + 2.0, top + LINE - 2.0);
            let _ = writeln!(svg, "<line class=\"{class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{y1}\" y2=\"{y2}\"/>");
        }
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{mean:.1}</text>", LEFT + WIDTH + 12.0, middle + 4.0);
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
