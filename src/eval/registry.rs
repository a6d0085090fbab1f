//! The tasks in `tasks/`, and which of them a name selects.

use std::path::Path;

use super::{Error, Result, Task};

const FILES: [&str; 31] = [
    include_str!("tasks/mmlu.toml"),
    include_str!("tasks/hellaswag.toml"),
    include_str!("tasks/piqa.toml"),
    include_str!("tasks/social_iqa.toml"),
    include_str!("tasks/boolq.toml"),
    include_str!("tasks/winogrande.toml"),
    include_str!("tasks/commonsense_qa.toml"),
    include_str!("tasks/openbookqa.toml"),
    include_str!("tasks/arc_easy.toml"),
    include_str!("tasks/arc_challenge.toml"),
    include_str!("tasks/triviaqa.toml"),
    include_str!("tasks/nq_open.toml"),
    include_str!("tasks/humaneval.toml"),
    include_str!("tasks/mbpp.toml"),
    include_str!("tasks/gsm8k.toml"),
    include_str!("tasks/gsm8k_cot.toml"),
    include_str!("tasks/gsm8k_cot_self_consistency.toml"),
    include_str!("tasks/minerva_math.toml"),
    include_str!("tasks/agieval.toml"),
    include_str!("tasks/agieval_math.toml"),
    include_str!("tasks/bbh.toml"),
    include_str!("tasks/leaderboard_bbh.toml"),
    include_str!("tasks/truthfulqa_mc1.toml"),
    include_str!("tasks/truthfulqa_mc2.toml"),
    include_str!("tasks/winogender_all.toml"),
    include_str!("tasks/crows_pairs_english.toml"),
    include_str!("tasks/toxigen.toml"),
    include_str!("tasks/bbq.toml"),
    include_str!("tasks/winobias.toml"),
    include_str!("tasks/bold.toml"),
    include_str!("tasks/realtoxicityprompts.toml"),
];

impl Task {
    /// Returns all tasks, in the model card's order; a task with subjects is one.
    pub fn all() -> Vec<Self> {
        let parse = |text: &&str| Self::parse(text).unwrap_or_else(|e| panic!("a task file is wrong: {e}"));
        FILES.iter().map(parse).collect()
    }

    /// Reads a task file of the user's.
    fn read(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string());
        let parts = text.and_then(|text| Self::parse(&text)?.parts());
        parts.map_err(|reason| Error::Invalid(format!("the task file {} cannot be used: {reason}", path.display())))
    }
}

/// Returns the tasks that these names select. A name is a task's, a group's such as `mmlu_stem`, a
/// subject's such as `mmlu_astronomy`, or a path ending in `.toml`: a task file of the user's.
///
/// # Errors
/// A name selects nothing, or a file cannot be used.
pub fn tasks_by_name(names: &[String]) -> Result<Vec<Task>> {
    let all = Task::all();
    let parts: Vec<Task> =
        all.iter().flat_map(|task| task.parts().unwrap_or_else(|e| panic!("a task file is wrong: {e}"))).collect();
    let mut found: Vec<Task> = Vec::new();
    for name in names {
        let selected: Vec<Task> = if name.ends_with(".toml") {
            Task::read(Path::new(name))?
        } else {
            parts.iter().filter(|task| task.name == *name || task.groups.contains(name)).cloned().collect()
        };
        if selected.is_empty() {
            return Err(unknown(name, &all, &parts));
        }
        for task in selected {
            if !found.iter().any(|known| known.name == task.name) {
                found.push(task);
            }
        }
    }
    Ok(found)
}

fn unknown(name: &str, all: &[Task], parts: &[Task]) -> Error {
    let names = parts.iter().flat_map(|task| task.groups.iter().chain([&task.name])).map(String::as_str);
    let mut near: Vec<(usize, &str)> = names.map(|known| (strsim::levenshtein(name, known), known)).collect();
    near.sort_unstable();
    near.dedup();
    let near: Vec<&str> =
        near.iter().filter(|(d, _)| *d <= name.len().max(6) / 2).take(3).map(|(_, known)| *known).collect();
    let all: Vec<&str> = all.iter().map(|task| task.name.as_str()).collect();
    let hint = if near.is_empty() { String::new() } else { format!(" Did you mean {}?", near.join(", ")) };
    Error::Invalid(format!("there is no task {name:?}.{hint} The tasks are {}", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metric::Metric;

    #[test]
    fn names_mean_tasks_groups_and_subjects() {
        let count = |names: &[&str]| {
            tasks_by_name(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).map(|tasks| tasks.len())
        };
        assert_eq!(count(&["mmlu"]).unwrap(), 57);
        assert_eq!(count(&["mmlu_stem", "mmlu_astronomy", "piqa", "piqa"]).unwrap(), 20);
        assert_eq!(count(&["bbh"]).unwrap(), 27);
        assert_eq!(count(&["winobias_type1", "winobias_type2_pro", "bold"]).unwrap(), 8);
        assert_eq!(count(&["leaderboard_bbh"]).unwrap(), 24);
        assert_eq!(count(&["agieval_en"]).unwrap(), 10);
        assert_eq!(count(&["minerva_math", "gsm8k", "gsm8k_cot"]).unwrap(), 9);
        let error = count(&["helaswag"]).unwrap_err().to_string();
        assert!(error.contains("Did you mean hellaswag"), "{error}");
        assert!(count(&["mmlu_astronomi"]).unwrap_err().to_string().contains("mmlu_astronomy"));
    }

    /// The model card has 28 figures. ToxiGen's is of another kind than the harness's task; those
    /// of all others stand beside a metric of a task, or of a group.
    #[test]
    fn figures_of_the_model_card_are_found() {
        let figures: usize = Task::all().iter().map(|task| task.card.len()).sum();
        assert_eq!(figures, 27);
        let found = |task: &str, name: &str, metric: Metric| {
            let task = tasks_by_name(&[task.to_owned()]).unwrap().remove(0);
            task.card(name, &metric).map(|card| (card.two_b, card.seven_b))
        };
        assert_eq!(found("mmlu_astronomy", "mmlu", Metric::Acc), Some((42.3, 64.3)));
        assert_eq!(found("mmlu_astronomy", "mmlu_astronomy", Metric::Acc), None);
        assert_eq!(found("winobias_type1_pro", "winobias_type1", Metric::Acc), Some((56.12, 59.09)));
        assert_eq!(found("winobias_type2_anti", "winobias_type2", Metric::Acc), Some((91.1, 92.23)));
        assert_eq!(found("winobias_type2_anti", "winobias", Metric::Acc), None);
        assert_eq!(found("truthfulqa_mc2", "truthfulqa_mc2", Metric::Mc2), Some((44.84, 31.81)));
    }

    #[test]
    fn what_differs_for_subjects_is_filled_in() {
        let one = |name: &str| tasks_by_name(&[name.to_owned()]).unwrap().remove(0);
        assert_eq!(one("agieval_sat_en").dataset, "hails/agieval-sat-en");
        assert_eq!(one("minerva_math_num_theory").config.as_deref(), Some("number_theory"));
        assert_eq!(one("mmlu_us_foreign_policy").config.as_deref(), Some("us_foreign_policy"));
        let anti = "WinoBias/wino/data/anti_stereotyped_type2.txt.test";
        assert_eq!(one("winobias_type2_anti").file.as_deref(), Some(anti));
        let bbh = one("bbh_cot_fewshot_word_sorting");
        assert_eq!((bbh.shots.unwrap().samples.len(), bbh.description.contains("Sort")), (3, true));
        let choices = |name: &str| one(name).values["answers"].as_array().unwrap().len();
        assert_eq!((choices("leaderboard_bbh_navigate"), choices("leaderboard_bbh_object_counting")), (2, 19));
    }

    #[test]
    fn tasks_that_say_too_little_or_too_much_are_refused() {
        let task =
            |more: &str| Task::parse(&format!("name='x'\nversion=1\ndataset='d'\nsplit='s'\ntarget='0'\n{more}"));
        assert!(task("metrics=['acc']").unwrap_err().contains("one of choices"));
        assert!(task("metrics=['acc']\ngenerate={until=['\\n']}").unwrap_err().contains("acc is of choices"));
        assert!(
            task("metrics=['exact_match']\nchoices='[1]'").unwrap_err().contains("exact_match is of generated answers")
        );
        assert!(task("metrics=['nonsense']\nchoices='[1]'").unwrap_err().contains("nonsense"));
        let vote = |k: usize| {
            format!(
                "metrics=['exact_match']\ngenerate={{until=[],repeats=4,filters=[{{name='m',steps=[{{first={k}}}]}}]}}"
            )
        };
        assert!(task(&vote(8)).unwrap_err().contains("8 of 4"));
        task(&vote(4)).unwrap();
        let wrong = "metrics=['exact_match']\ngenerate={until=[],filters=[{name='m',steps=[{regex={pattern='('}}]}]}";
        assert!(task(wrong).unwrap_err().contains("regular expression"));
    }
}
