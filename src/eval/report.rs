//! Results: in the harness's JSON format, and as a table beside the model card's figures.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Ask, Item, Judged, Metric, Response, Summary, Task};

/// A task with its documents' figures.
pub struct Evaluation {
    pub task: Task,
    pub num_fewshot: usize,
    /// Documents of the split.
    pub documents: usize,
    /// Of each document that was evaluated: its values for each way to read it and each metric, in the task's order.
    pub outcomes: Vec<Vec<Vec<f64>>>,
}

/// A figure of a task or a group.
#[derive(Clone, Debug)]
pub struct Figure {
    pub metric: Metric,
    /// How answers were read.
    pub reading: String,
    pub summary: Summary,
}

impl Figure {
    /// For readers.
    pub fn title(&self) -> String {
        let metric = self.metric.name();
        if self.reading == "none" { metric } else { format!("{metric}, {}", self.reading) }
    }
}

impl Evaluation {
    /// A task without documents yet.
    pub fn new(task: Task, num_fewshot: usize, documents: usize) -> Self {
        Self { task, num_fewshot, documents, outcomes: vec![] }
    }

    /// Adds a document, with what was read in each way.
    pub fn add(&mut self, judged: &[Judged]) {
        self.outcomes.push(judged.iter().flat_map(|judged| judged.values.clone()).collect());
    }

    /// What the task's metrics come to, for each way to read answers.
    pub fn figures(&self) -> Vec<Figure> {
        let columns = self
            .task
            .readings()
            .into_iter()
            .flat_map(|reading| self.task.metrics.iter().map(move |metric| (reading.to_owned(), metric.clone())));
        let figure = |(i, (reading, metric)): (usize, (String, Metric))| {
            let values: Vec<Vec<f64>> = self.outcomes.iter().map(|outcome| outcome[i].clone()).collect();
            Figure { summary: metric.summarize(&values), metric, reading }
        };
        columns.enumerate().map(figure).collect()
    }

    /// The figure that stands for the task: the model card's, or the first one that is a share.
    pub fn main_figure(&self, figures: &[Figure]) -> Option<Figure> {
        let card = self.task.card.as_ref();
        let wanted = |figure: &&Figure| card.map_or(figure.metric.is_share(), |card| card.metric == figure.metric);
        figures.iter().find(wanted).cloned()
    }
}

/// A group of tasks: its name, its members, and the figures that they all have, pooled.
pub struct GroupResult<'e> {
    pub name: String,
    pub members: Vec<&'e Evaluation>,
    pub figures: Vec<Figure>,
}

impl GroupResult<'_> {
    /// Whether it is a whole benchmark, not a part of one.
    pub fn is_whole(&self) -> bool {
        self.members[0].task.groups[0] == self.name
    }
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
        let all: Vec<Vec<Figure>> = members.iter().map(|member| member.figures()).collect();
        let key = |figure: &Figure| (figure.metric.name(), figure.reading.clone());
        let pooled = |figure: &Figure| {
            let same = |of: &Vec<Figure>| of.iter().find(|other| key(other) == key(figure)).map(|other| other.summary);
            let parts: Option<Vec<Summary>> = all.iter().map(same).collect();
            Some(Figure { summary: Summary::pooled(&parts?), ..figure.clone() })
        };
        let figures = all[0].iter().filter_map(pooled).collect();
        Self { name, members, figures }
    }
}

fn figures_json(alias: &str, figures: &[Figure]) -> Value {
    let mut object = Map::new();
    object.insert("alias".into(), alias.into());
    for Figure { metric, reading, summary } in figures {
        object.insert(format!("{},{reading}", metric.name()), summary.mean.into());
        let stderr = summary.stderr.map_or(Value::from("N/A"), Value::from);
        object.insert(format!("{}_stderr,{reading}", metric.name()), stderr);
    }
    Value::Object(object)
}

/// All results, as `lm_eval --output_path` writes them. `config` tells how the run was made.
pub fn results_json(evaluations: &[Evaluation], config: Value) -> Value {
    let by_task = |f: &dyn Fn(&Evaluation) -> Value| -> Value {
        evaluations.iter().map(|e| (e.task.name.clone(), f(e))).collect::<Map<String, Value>>().into()
    };
    let groups = group_of(evaluations);
    let mut results = by_task(&|e| figures_json(&e.task.name, &e.figures()));
    let mut of_groups = Map::new();
    for group in &groups {
        of_groups.insert(group.name.clone(), figures_json(&group.name, &group.figures));
        results[&group.name] = figures_json(&group.name, &group.figures);
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
            e.task.metrics.iter().map(|m| (m.name(), m.higher_is_better().into())).collect::<Map<_, _>>().into()
        }),
        "n-samples": by_task(&|e| json!({"original": e.documents, "effective": e.outcomes.len()})),
        "config": config,
    })
}

/// One document's log, read in one way, as the harness's `samples_*.jsonl` has it, with its task's name.
pub fn sample_json(task: &Task, item: &Item, response: &Response, judged: &Judged) -> Value {
    let arguments: Vec<Value> = match (&item.ask, &task.generate) {
        (Ask::Choices(choices), _) => {
            choices.pairs.iter().map(|pair| json!({"arg_0": &*pair.context, "arg_1": pair.continuation})).collect()
        }
        (Ask::Words { context, .. }, generate) => {
            let how = generate.as_ref().map(|g| {
                json!({"until": g.until, "max_gen_toks": g.max_tokens, "do_sample": g.temperature > 0.0, "temperature": g.temperature})
            });
            vec![json!({"arg_0": context, "arg_1": how})]
        }
    };
    let number = |(i, argument)| (format!("gen_args_{i}"), argument);
    let (responses, read) = match response {
        Response::Likelihoods(all) => {
            (json!(all.iter().map(|l| [l]).collect::<Vec<_>>()), json!(all.iter().collect::<Vec<_>>()))
        }
        Response::Words(answers) => (json!([answers]), json!([judged.read])),
    };
    let mut sample = json!({
        "task": task.name,
        "doc_id": item.id,
        "doc": item.doc,
        "target": item.target,
        "arguments": arguments.into_iter().enumerate().map(number).collect::<Map<String, Value>>(),
        "resps": responses,
        "filtered_resps": read,
        "filter": judged.reading,
        "metrics": task.metrics.iter().map(Metric::name).collect::<Vec<_>>(),
    });
    for (metric, values) in task.metrics.iter().zip(&judged.values) {
        sample[metric.name()] = if values.len() == 1 { json!(values[0]) } else { json!(values) };
    }
    sample
}

/// What a log says that was read and found; the reverse of [`sample_json`]. None if it is not of this task.
pub fn judged_of(task: &Task, sample: &Value) -> Option<Judged> {
    let reading = sample["filter"].as_str()?.to_owned();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let values = |metric: &Metric| {
        let value = sample.get(metric.name())?;
        Some(value.as_array().map_or_else(|| vec![number(value)], |all| all.iter().map(number).collect()))
    };
    let read = sample["filtered_resps"].get(0).and_then(Value::as_str).map(str::to_owned);
    Some(Judged { reading, read, values: task.metrics.iter().map(values).collect::<Option<_>>()? })
}

/// The table for the terminal: groups first, then tasks; the card's figures where it has some.
pub fn table(evaluations: &[Evaluation]) -> String {
    let mut lines = vec![
        "| task | shots | metric | score | ± | card 2B | card 7B | documents |".to_owned(),
        "|---|---:|---|---:|---:|---:|---:|---:|".to_owned(),
    ];
    let mut add = |name: &str, first: &Evaluation, figures: &[Figure], with_card: bool| {
        for (i, figure) in figures.iter().enumerate() {
            let is_first = figures[..i].iter().all(|other| other.metric != figure.metric);
            let card = first.task.card.as_ref().filter(|card| with_card && is_first && card.metric == figure.metric);
            let of_card = |f: fn(&super::Card) -> f64| card.map_or(String::new(), |card| format!("{:.1}", f(card)));
            let shown = |value: f64| match figure.metric.is_share() {
                true => format!("{:.1}", 100.0 * value),
                false => format!("{value:.3}"),
            };
            let mean = figure.summary.mean;
            lines.push(format!(
                "| {name} | {} | {} | {} | {} | {} | {} | {} |",
                first.num_fewshot,
                figure.title(),
                if mean.is_nan() { "–".to_owned() } else { shown(mean) },
                figure.summary.stderr.map_or(String::new(), shown),
                of_card(|card| card.two_b),
                of_card(|card| card.seven_b),
                figure.summary.documents
            ));
        }
    };
    for group in group_of(evaluations) {
        add(&group.name, group.members[0], &group.figures, group.is_whole());
    }
    for evaluation in evaluations {
        add(&evaluation.task.name, evaluation, &evaluation.figures(), evaluation.task.groups.is_empty());
    }
    lines.join("\n") + "\n"
}
