//! The plot: latencies and throughput over the load, as SVG.

use std::fmt::Write;

use super::metrics::{Distribution, Level, Summary};

/// Size of the picture, of a panel's plotting area, and of the space around it.
const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 680.0;
const PANEL_WIDTH: f64 = 360.0;
const PANEL_HEIGHT: f64 = 210.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 90.0;
const COLUMN: f64 = 460.0;
const ROW: f64 = 295.0;

/// Colours of Okabe and Ito (2008), which readers with any colour vision tell apart.
const COLOURS: [&str; 3] = ["#0072b2", "#e69f00", "#d55e00"];

/// A line of a panel.
struct Series {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// Returns the picture of all levels: TTFT, TPOT, end to end and throughput.
pub(super) fn svg(title: &str, levels: &[(Level, Summary)]) -> String {
    let axis = levels.first().map_or("users", |(level, _)| level.load.axis().0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"36\" font-size=\"17\">{}</text>", escape(title));
    let percentiles = |of: fn(&Summary) -> Option<Distribution>| {
        let series = |name, value: fn(Distribution) -> f64| Series {
            name,
            points: levels.iter().filter_map(|(level, s)| Some((level.load.axis().1, value(of(s)?)))).collect(),
        };
        vec![series("p50", |d| d.p50), series("p90", |d| d.p90), series("p99", |d| d.p99)]
    };
    let throughput = Series {
        name: "output",
        points: levels.iter().map(|(l, s)| (l.load.axis().1, s.per_second(s.output_tokens as f64))).collect(),
    };
    panel(&mut out, 0, "Time to first token, ms", axis, &percentiles(|s| s.ttft));
    panel(&mut out, 1, "Time per output token, ms", axis, &percentiles(|s| s.tpot));
    panel(&mut out, 2, "End to end, ms", axis, &percentiles(|s| s.e2e));
    panel(&mut out, 3, "Tokens per second", axis, &[throughput]);
    out + "</svg>\n"
}

/// Draws the panel of a place: 0 and 1 above 2 and 3.
fn panel(out: &mut String, place: usize, title: &str, axis: &str, series: &[Series]) {
    let (left, top) = (LEFT + COLUMN * (place % 2) as f64, TOP + ROW * (place / 2) as f64);
    let count = series.len();
    let (right, bottom) = (left + PANEL_WIDTH, top + PANEL_HEIGHT);
    let points = || series.iter().flat_map(|series| &series.points);
    let ticks_x = ticks(points().map(|p| p.0).fold(0.0, f64::max));
    let ticks_y = ticks(points().map(|p| p.1).fold(0.0, f64::max));
    let end = |ticks: &[f64]| ticks.last().copied().unwrap_or(1.0);
    let x = |value: f64| left + PANEL_WIDTH * value / end(&ticks_x);
    let y = |value: f64| bottom - PANEL_HEIGHT * value / end(&ticks_y);
    let _ = writeln!(out, "<text x=\"{left}\" y=\"{:.1}\" font-weight=\"bold\">{}</text>", top - 12.0, escape(title));
    for &tick in &ticks_y {
        let at = y(tick);
        let _ = writeln!(out, "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>");
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>", left - 6.0, at + 4.0);
    }
    for &tick in &ticks_x {
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>", x(tick), bottom + 17.0);
    }
    let _ = writeln!(
        out,
        "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#222\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        left + PANEL_WIDTH / 2.0,
        bottom + 34.0,
        escape(axis)
    );
    for (i, (series, colour)) in series.iter().zip(COLOURS).enumerate() {
        let line: Vec<String> = series.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for p in &series.points {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{}: {:.2} at {} {}</title></circle>",
                x(p.0),
                y(p.1),
                series.name,
                p.1,
                p.0,
                escape(axis)
            );
        }
        // The legend stands beside the title. A single line needs none.
        if count > 1 {
            let at = right - 36.0 * (count - i) as f64;
            let _ =
                writeln!(out, "<text x=\"{at:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>", top - 12.0, series.name);
        }
    }
}

/// Returns round numbers from 0 to the first one that is not below `max`, about five of them.
fn ticks(max: f64) -> Vec<f64> {
    if !(max > 0.0 && max.is_finite()) {
        return vec![0.0, 1.0];
    }
    let power = 10_f64.powf((max / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| max / step <= 5.0).unwrap_or(max);
    let digits = (-power.log10()).max(0.0) as usize + 1;
    let round = |value: f64| format!("{value:.digits$}").parse().unwrap_or(value);
    (0..=(max / step).ceil() as usize).map(|i| round(i as f64 * step)).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cli::bench::serve::metrics::Load;

    #[test]
    fn ticks_are_round_and_reach_beyond_the_largest_value() {
        assert_eq!(ticks(16.0), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(ticks(1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(0.034), [0.0, 0.01, 0.02, 0.03, 0.04]);
        assert_eq!(ticks(2300.0), [0.0, 500.0, 1000.0, 1500.0, 2000.0, 2500.0]);
        assert_eq!(ticks(0.0), [0.0, 1.0]);
    }

    #[test]
    fn levels_without_answers_make_a_picture_too() {
        let level = Level { load: Load::Users(1), started: Instant::now(), samples: vec![] };
        let summary = Summary::of(&level, None);
        let picture = svg("a <model> & more", &[(level, summary)]);
        assert!(picture.contains("a &lt;model&gt; &amp; more") && picture.ends_with("</svg>\n"), "{picture}");
        assert!(!picture.contains("NaN"), "{picture}");
    }
}
