//! `plan` and `compile` for this computer; for TPUs see tests/external.

use super::Home;

#[test]
fn a_plan_for_this_computer() {
    let home = Home::new();
    let args = ["plan", "--platform", "cpu", "--model", "tiny", "--mesh", "1x2", "--slots", "2", "--context", "256"];
    let plan = home.run(&[&args[..], &["--json"]].concat()).json();
    assert_eq!((&plan["fits"], &plan["mesh"], &plan["slots"]), (&true.into(), &"1x2".into(), &2.into()));
    // 2 layers of 2 slots of 256 positions of one head of 16, keys and values, in bf16.
    assert_eq!(plan["cache_bytes"], 2 * 2 * 256 * 16 * 2 * 2);
    assert_eq!(plan["decode"]["alias_bytes"], plan["cache_bytes"]);
    let sent: i64 =
        plan["decode"]["collectives"].as_array().unwrap().iter().map(|c| c["times"].as_i64().unwrap()).sum();
    assert_eq!(sent, 2 * 2 + 1 + 1, "two for each layer, the embedding, the sampled token");
    let table = home.run(&args).ok().stdout;
    for words in ["| peak |", "least time", "tok/s", "Fits:"] {
        assert!(table.contains(words), "{words:?} is not in:\n{table}");
    }
}

#[test]
fn what_cannot_be_planned_is_said() {
    let home = Home::new();
    home.run(&["plan", "--platform", "cpu", "--model", "tiny", "--context", "2048"]).fails(1, &["1024 tokens"]);
    home.run(&["plan", "--platform", "cuda", "--model", "tiny", "--mesh", "1x2"]).fails(1, &["one H100 only"]);
    home.run(&["plan", "--platform", "cpu", "--model", "nothing"]).fails(1, &["nothing", "gemma-1.1-7b"]);
}

#[test]
fn a_bundle_is_used_and_one_for_something_else_is_refused() {
    let home = Home::new();
    let model = home.tiny_model();
    let bundle = home.path("bundle");
    let bundle = bundle.to_str().unwrap();
    let compile =
        ["compile", "--platform", "cpu", "--model", &model, "--mesh", "1x2", "--context", "256", "--out", bundle];
    home.run(&compile).ok();
    // What is there is not compiled again.
    let again = home.run(&compile).ok();
    assert!(again.stdout.contains("programs"), "{}", again.stdout);

    let generate =
        ["generate", "--platform", "cpu", "--model", &model, "--prompt-tokens", "2,5,7", "-n", "4", "--json"];
    let with = |more: &[&str]| home.run(&[&generate[..], more].concat());
    let found = with(&["--mesh", "1x2", "--bundle", bundle]).json();
    assert_eq!(found["timings"]["programs_compiled"], 0, "{found}");
    let alone = with(&["--mesh", "1x2"]).json();
    assert!(alone["timings"]["programs_compiled"].as_i64() > Some(0), "{alone}");
    assert_eq!(found["tokens"], alone["tokens"]);

    with(&["--bundle", bundle]).fails(1, &["--mesh 1x2", "--mesh 1x1"]);
    with(&["--mesh", "1x2", "--bundle", "/nonexistent"]).fails(1, &["/nonexistent", "gemma-pjrt compile"]);
    let manifest = std::path::Path::new(bundle).join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("PJRT 0.", "PJRT 0.9")).unwrap();
    with(&["--mesh", "1x2", "--bundle", bundle]).fails(1, &["another plugin", "PJRT 0.9", "gemma-pjrt compile"]);
    std::fs::write(&manifest, "{").unwrap();
    with(&["--mesh", "1x2", "--bundle", bundle]).fails(1, &["manifest.json"]);
}
