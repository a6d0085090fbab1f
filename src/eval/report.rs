//! Results: in the harness's JSON format, and as a table beside the model card's scores.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{EvalRequest, GradedResponse, Item, Metric, ModelCardScores, Response, Summary, Task};

/// A task with the metrics of its documents.
pub struct Evaluation {
    pub task: Task,
    pub num_fewshot: usize,
    /// The number of documents in the split.
    pub documents: usize,
    /// `[document][filter and metric][value]`: the values of each evaluated document, for each
    /// filter and each metric, in the task's order.
    pub outcomes: Vec<Vec<Vec<f64>>>,
}

/// The result of a task or group by one metric after one filter.
#[derive(Clone, Debug)]
pub struct MetricResult {
    pub metric: Metric,
    /// The filter's name.
    pub filter: String,
    pub summary: Summary,
}

impl MetricResult {
    /// Returns the name that tables show: the metric's, with the filter's if there is one.
    pub fn title(&self) -> String {
        let metric = self.metric.name();
        if self.filter == "none" { metric } else { format!("{metric}, {}", self.filter) }
    }
}

impl Evaluation {
    /// Returns the evaluation of a task without documents yet.
    pub fn new(task: Task, num_fewshot: usize, documents: usize) -> Self {
        Self { task, num_fewshot, documents, outcomes: vec![] }
    }

    /// Adds a document: its response after each filter.
    pub fn add(&mut self, graded: &[GradedResponse]) {
        self.outcomes.push(graded.iter().flat_map(|graded| graded.values.clone()).collect());
    }

    /// Returns the task's results, for each filter and each metric.
    pub fn results(&self) -> Vec<MetricResult> {
        let columns = self
            .task
            .filter_names()
            .into_iter()
            .flat_map(|filter| self.task.metrics.iter().map(move |metric| (filter.to_owned(), metric.clone())));
        let result = |(i, (filter, metric)): (usize, (String, Metric))| {
            let values: Vec<Vec<f64>> = self.outcomes.iter().map(|outcome| outcome[i].clone()).collect();
            MetricResult { summary: metric.summarize(&values), metric, filter }
        };
        columns.enumerate().map(result).collect()
    }

    /// Returns the share that stands for the task: that of the model card's metric, or the first
    /// one.
    pub fn main_result(&self, results: &[MetricResult]) -> Option<MetricResult> {
        let of_card = self.task.card_metric();
        let wanted =
            |result: &&MetricResult| of_card.map_or(result.metric.is_share(), |metric| *metric == result.metric);
        results.iter().find(wanted).filter(|result| result.metric.is_share()).cloned()
    }
}

/// A group of tasks, with the pooled results that all its members have.
pub struct GroupResult<'e> {
    pub name: String,
    pub members: Vec<&'e Evaluation>,
    pub results: Vec<MetricResult>,
}

impl GroupResult<'_> {
    /// Returns whether the group is a whole benchmark, not a part of one.
    pub fn is_whole(&self) -> bool {
        self.members[0].task.groups[0] == self.name
    }

    /// Returns whether the model card has a score of its own for the group.
    pub fn is_on_card(&self) -> bool {
        let on_card = |result: &MetricResult| self.members[0].task.card(&self.name, &result.metric).is_some();
        self.results.iter().any(on_card)
    }
}

/// Returns the groups that the evaluated tasks belong to, with pooled results.
pub fn group_results(evaluations: &[Evaluation]) -> Vec<GroupResult<'_>> {
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
        let all: Vec<Vec<MetricResult>> = members.iter().map(|member| member.results()).collect();
        let key = |result: &MetricResult| (result.metric.name(), result.filter.clone());
        let pooled = |result: &MetricResult| {
            let same =
                |of: &Vec<MetricResult>| of.iter().find(|other| key(other) == key(result)).map(|other| other.summary);
            let parts: Option<Vec<Summary>> = all.iter().map(same).collect();
            Some(MetricResult { summary: Summary::pooled(&parts?), ..result.clone() })
        };
        let results = all[0].iter().filter_map(pooled).collect();
        Self { name, members, results }
    }
}

fn metrics_json(alias: &str, results: &[MetricResult]) -> Value {
    let mut object = Map::new();
    object.insert("alias".into(), alias.into());
    for MetricResult { metric, filter, summary } in results {
        object.insert(format!("{},{filter}", metric.name()), summary.mean.into());
        let stderr = summary.stderr.map_or(Value::from("N/A"), Value::from);
        object.insert(format!("{}_stderr,{filter}", metric.name()), stderr);
    }
    Value::Object(object)
}

/// Returns all results as `lm_eval --output_path` writes them. `config` describes the run.
pub fn results_json(evaluations: &[Evaluation], config: Value) -> Value {
    let by_task = |f: &dyn Fn(&Evaluation) -> Value| -> Value {
        evaluations.iter().map(|e| (e.task.name.clone(), f(e))).collect::<Map<String, Value>>().into()
    };
    let groups = group_results(evaluations);
    let mut results = by_task(&|e| metrics_json(&e.task.name, &e.results()));
    let mut group_metrics = Map::new();
    for group in &groups {
        group_metrics.insert(group.name.clone(), metrics_json(&group.name, &group.results));
        results[&group.name] = metrics_json(&group.name, &group.results);
    }
    let members = |group: &GroupResult<'_>| {
        let names: Vec<&str> = group.members.iter().map(|member| member.task.name.as_str()).collect();
        (group.name.clone(), json!(names))
    };
    json!({
        "results": results,
        "groups": group_metrics,
        "group_subtasks": groups.iter().map(members).collect::<Map<String, Value>>(),
        "versions": by_task(&|e| serde_json::to_value(&e.task.version).unwrap_or_default()),
        "n-shot": by_task(&|e| e.num_fewshot.into()),
        "higher_is_better": by_task(&|e| {
            e.task.metrics.iter().map(|m| (m.name(), m.higher_is_better().into())).collect::<Map<_, _>>().into()
        }),
        "n-samples": by_task(&|e| json!({"original": e.documents, "effective": e.outcomes.len()})),
        "config": config,
    })
}

/// Returns the log of one document after one filter, as the harness's `samples_*.jsonl` has it,
/// with the task's name.
pub fn sample_json(task: &Task, item: &Item, response: &Response, graded: &GradedResponse) -> Value {
    let arguments: Vec<Value> = match (&item.request, &task.generate) {
        (EvalRequest::Loglikelihood(choices), _) => choices
            .instances
            .iter()
            .map(|instance| json!({"arg_0": &*instance.context, "arg_1": instance.continuation}))
            .collect(),
        (EvalRequest::GenerateUntil { context, .. }, generate) => {
            let how = generate.as_ref().map(|g| {
                json!({"until": g.until, "max_gen_toks": g.max_tokens, "do_sample": g.temperature > 0.0, "temperature": g.temperature})
            });
            vec![json!({"arg_0": context, "arg_1": how})]
        }
    };
    let number = |(i, argument)| (format!("gen_args_{i}"), argument);
    let (responses, filtered) = match response {
        Response::Loglikelihoods(all) => {
            (json!(all.iter().map(|l| [l]).collect::<Vec<_>>()), json!(all.iter().collect::<Vec<_>>()))
        }
        Response::Generated(answers) => (json!([answers]), json!([graded.filtered])),
    };
    let mut sample = json!({
        "task": task.name,
        "doc_id": item.id,
        "doc": item.doc,
        "target": item.target,
        "arguments": arguments.into_iter().enumerate().map(number).collect::<Map<String, Value>>(),
        "resps": responses,
        "filtered_resps": filtered,
        "filter": graded.filter,
        "metrics": task.metrics.iter().map(Metric::name).collect::<Vec<_>>(),
    });
    for (metric, values) in task.metrics.iter().zip(&graded.values) {
        sample[metric.name()] = if values.len() == 1 { json!(values[0]) } else { json!(values) };
    }
    sample
}

/// Reads a graded response back from a log that [`sample_json`] made. `None` if the log is not of
/// this task.
pub fn graded_from_sample(task: &Task, sample: &Value) -> Option<GradedResponse> {
    let filter = sample["filter"].as_str()?.to_owned();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let values = |metric: &Metric| {
        let value = sample.get(metric.name())?;
        Some(value.as_array().map_or_else(|| vec![number(value)], |all| all.iter().map(number).collect()))
    };
    let filtered = sample["filtered_resps"].get(0).and_then(Value::as_str).map(str::to_owned);
    Some(GradedResponse { filter, filtered, values: task.metrics.iter().map(values).collect::<Option<_>>()? })
}

/// Returns the table for the terminal: groups first, then tasks, each with the model card's scores
/// if it has some.
pub fn table(evaluations: &[Evaluation]) -> String {
    let mut lines = vec![
        "| task | shots | metric | score | ± | card 2B | card 7B | documents |".to_owned(),
        "|---|---:|---|---:|---:|---:|---:|---:|".to_owned(),
    ];
    let mut add = |name: &str, first: &Evaluation, results: &[MetricResult]| {
        for (i, result) in results.iter().enumerate() {
            let is_first = results[..i].iter().all(|other| other.metric != result.metric);
            let card = first.task.card(name, &result.metric).filter(|_| is_first);
            let card_score =
                |f: fn(&ModelCardScores) -> f64| card.map_or(String::new(), |card| format!("{:.1}", f(card)));
            let shown = |value: f64| match result.metric.is_share() {
                true => format!("{:.1}", 100.0 * value),
                false => format!("{value:.3}"),
            };
            let mean = result.summary.mean;
            lines.push(format!(
                "| {name} | {} | {} | {} | {} | {} | {} | {} |",
                first.num_fewshot,
                result.title(),
                if mean.is_nan() { "–".to_owned() } else { shown(mean) },
                result.summary.stderr.map_or(String::new(), shown),
                card_score(|card| card.two_b),
                card_score(|card| card.seven_b),
                result.summary.documents
            ));
        }
    };
    for group in group_results(evaluations) {
        add(&group.name, group.members[0], &group.results);
    }
    for evaluation in evaluations {
        add(&evaluation.task.name, evaluation, &evaluation.results());
    }
    lines.join("\n") + "\n"
}
