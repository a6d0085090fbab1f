use serde_json::Value;

use crate::Home;

const SHORT: [&str; 9] = ["-p", "4,20", "-n", "3", "-b", "1,2", "-d", "8", "--reps"];

#[test]
fn bench_measures_and_compares_with_the_machines_limits() {
    let home = Home::new();
    let args = |rest: &[&'static str]| [&["bench"], &SHORT[..], rest].concat();
    let ran = home.run(&args(&["2", "--threads", "2", "--json"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<&str> = tests.iter().map(|t| t["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp4", "pp20", "tg3 @ d8", "tg3 @ d8, b2"]);
    for test in tests {
        assert!(test["tokens_per_second"].as_f64().unwrap() > 0.0, "{test}");
        assert_eq!(test["all_tokens_per_second"].as_array().unwrap().len(), 2);
        assert!(test["share_of_limit"].as_f64().unwrap() > 0.0, "{test}");
    }
    assert_eq!((&report["threads"], &report["platform"]), (&2.into(), &"cpu".into()));
    assert_eq!(report["read_bytes_per_second"].as_array().unwrap().len(), 2 * 4);
    let seconds =
        |name: &str| -> Vec<f64> { report[name].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect() };
    let (whole, prefill) = (seconds("first_token_seconds"), seconds("first_token_prefill_seconds"));
    assert!(whole.len() == 2 && whole.iter().zip(&prefill).all(|(whole, prefill)| whole > prefill));

    let ran = home.run(&args(&["1"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let rows = ran.stdout.lines().filter(|line| line.starts_with("| demo bf16 | ")).count();
    assert_eq!(rows, 4, "{}", ran.stdout);
    assert!(ran.stdout.contains("Limit, reading the weights") && ran.stdout.contains("First token after"));
}

#[test]
fn bench_refuses_what_does_not_fit_the_context() {
    let home = Home::new();
    for args in [["bench", "-p", "513"], ["bench", "-d", "500"]] {
        let ran = home.run(&args);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("do not fit a context of 512"), "{}", ran.stderr);
    }
}
