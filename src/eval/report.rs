//! Results: in the harness's JSON format, and as a table beside the model card's figures.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Item, Likelihood, Metric, Summary, Task, summarize};

/// A task with its documents' figures.
pub struct Evaluation {
    pub task: Task,
    pub num_fewshot: usize,
    /// Documents of the split.
    pub documents: usize,
    /// Of each document, in the order of the task's metrics.
    pub outcomes: Vec<Vec<f64>>,
}

impl Evaluation {
    /// Each metric's summary.
    pub fn summaries(&self) -> Vec<(Metric, Summary)> {
        let of = |(i, &metric): (usize, &Metric)| {
            (metric, summarize(&self.outcomes.iter().map(|outcome| outcome[i]).collect::<Vec<_>>()))
        };
        self.task.metrics.iter().enumerate().map(of).collect()
    }
}

/// A group of tasks: its name, its members, and their metrics pooled.
pub struct GroupResult<'e> {
    pub name: String,
    pub members: Vec<&'e Evaluation>,
    pub summaries: Vec<(Metric, Summary)>,
}

/// The groups that the tasks belong to, of the tasks that were run.
pub fn group_of(evaluations: &[Evaluation]) -> Vec<GroupResult<'_>> {
    let mut groups: BTreeMap<String, Vec<&Evaluation>> = BTreeMap::new();
    for evaluation in evaluations {
        for group in &evaluation.task.groups {
            groups.entry(group.clone()).or_default().push(evaluation);
        }
    }
    groups.into_iter().map(|(name, members)| GroupResult::pooled(name, members)).collect()
}

impl<'e> GroupResult<'e> {
    fn pooled(name: String, members: Vec<&'e Evaluation>) -> Self {
        let metrics = members[0].task.metrics.clone();
        let summary = |(i, metric): (usize, Metric)| {
            let parts: Vec<Summary> = members.iter().map(|member| member.summaries()[i].1).collect();
            (metric, Summary::pooled(&parts))
        };
        let summaries = metrics.into_iter().enumerate().map(summary).collect();
        Self { name, members, summaries }
    }
}

fn figures(alias: &str, summaries: &[(Metric, Summary)]) -> Value {
    let mut object = Map::new();
    object.insert("alias".into(), alias.into());
    for (metric, summary) in summaries {
        object.insert(format!("{},none", metric.name()), summary.mean.into());
        let stderr = summary.stderr.map_or(Value::from("N/A"), Value::from);
        object.insert(format!("{}_stderr,none", metric.name()), stderr);
    }
    Value::Object(object)
}

/// All results, as `lm_eval --output_path` writes them. `config` tells how the run was made.
pub fn results_json(evaluations: &[Evaluation], config: Value) -> Value {
    let by_task = |f: &dyn Fn(&Evaluation) -> Value| -> Value {
        evaluations.iter().map(|e| (e.task.name.clone(), f(e))).collect::<Map<String, Value>>().into()
    };
    let groups = group_of(evaluations);
    let mut results = by_task(&|e| figures(&e.task.name, &e.summaries()));
    let mut of_groups = Map::new();
    for group in &groups {
        of_groups.insert(group.name.clone(), figures(&group.name, &group.summaries));
        results[&group.name] = figures(&group.name, &group.summaries);
    }
    let members = |group: &GroupResult<'_>| {
        let names: Vec<&str> = group.members.iter().map(|member| member.task.name.as_str()).collect();
        (group.name.clone(), json!(names))
    };
    json!({
        "results": results,
        "groups": of_groups,
        "group_subtasks": groups.iter().map(members).collect::<Map<String, Value>>(),
        "versions": by_task(&|e| serde_json::to_value(&e.task.version).unwrap_or_default()),
        "n-shot": by_task(&|e| e.num_fewshot.into()),
        "higher_is_better": by_task(&|e| {
            e.task.metrics.iter().map(|m| (m.name().to_owned(), m.higher_is_better().into())).collect::<Map<_, _>>().into()
        }),
        "n-samples": by_task(&|e| json!({"original": e.documents, "effective": e.outcomes.len()})),
        "config": config,
    })
}

/// One document's log, as the harness's `samples_*.jsonl` has it, with its task's name.
pub fn sample_json(task: &Task, item: &Item, likelihoods: &[Likelihood], values: &[f64]) -> Value {
    let argument = |(i, pair): (usize, &super::Pair)| {
        (format!("gen_args_{i}"), json!({"arg_0": pair.context, "arg_1": pair.continuation}))
    };
    let responses: Vec<Value> = likelihoods.iter().map(|l| json!([l.logprob, l.is_greedy])).collect();
    let mut sample = json!({
        "task": task.name,
        "doc_id": item.id,
        "doc": item.doc,
        "target": item.target,
        "arguments": item.pairs.iter().enumerate().map(argument).collect::<Map<String, Value>>(),
        "resps": responses.iter().map(|r| json!([r])).collect::<Vec<_>>(),
        "filtered_resps": responses,
        "metrics": task.metrics.iter().map(|metric| metric.name()).collect::<Vec<_>>(),
    });
    for (metric, value) in task.metrics.iter().zip(values) {
        sample[metric.name()] = json!(value);
    }
    sample
}

/// The table for the terminal: groups first, then tasks; the card's figures where it has some.
pub fn table(evaluations: &[Evaluation]) -> String {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let mut lines = vec![
        "| task | shots | metric | score | ± | card 2B | card 7B | documents |".to_owned(),
        "|---|---:|---|---:|---:|---:|---:|---:|".to_owned(),
    ];
    let mut add = |name: &str, first: &Evaluation, summaries: &[(Metric, Summary)], with_card: bool| {
        for (metric, summary) in summaries {
            let card = first.task.card.as_ref().filter(|card| with_card && card.metric == *metric);
            let of_card = |f: fn(&super::Card) -> f64| card.map_or(String::new(), |card| format!("{:.1}", f(card)));
            let (score, stderr) = match metric {
                Metric::LikelihoodDiff => (format!("{:.3}", summary.mean), summary.stderr.map(|s| format!("{s:.3}"))),
                _ => (percent(summary.mean), summary.stderr.map(percent)),
            };
            lines.push(format!(
                "| {name} | {} | {} | {score} | {} | {} | {} | {} |",
                first.num_fewshot,
                metric.name(),
                stderr.unwrap_or_default(),
                of_card(|card| card.two_b),
                of_card(|card| card.seven_b),
                summary.documents
            ));
        }
    };
    for group in group_of(evaluations) {
        let first = group.members[0];
        add(&group.name, first, &group.summaries, first.task.groups[0] == group.name);
    }
    for evaluation in evaluations {
        add(&evaluation.task.name, evaluation, &evaluation.summaries(), evaluation.task.groups.is_empty());
    }
    lines.join("\n") + "\n"
}
