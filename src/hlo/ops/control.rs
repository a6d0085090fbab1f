//! Control flow, calls, and calls of functions outside the program.

use crate::hlo::{Computation, DType, Graph, Op, Shape, Type, instruction::Attributes};

impl Graph {
    /// Runs `body` so many times on the state; it is told how often it has run before (`s32[]`).
    #[track_caller]
    pub fn repeat<'g>(
        &'g self,
        times: i64,
        state: &[Op<'g>],
        body: impl for<'a> FnOnce(Op<'a>, &[Op<'a>]) -> Vec<Op<'a>>,
    ) -> Vec<Op<'g>> {
        let carried: Vec<Op<'g>> = std::iter::once(self.scalar(DType::S32, 0.0)).chain(state.iter().copied()).collect();
        self.turns(
            times,
            &carried,
            |s| s[0].lt(s[0].graph().scalar(DType::S32, times as f64)),
            |s| std::iter::once(s[0] + 1.0).chain(body(s[0], &s[1..])).collect(),
        )
        .split_off(1)
    }

    /// Runs `body` on the state for as long as `condition` (`pred[]`) holds of it.
    #[track_caller]
    pub fn repeat_while<'g>(
        &'g self,
        state: &[Op<'g>],
        condition: impl for<'a> FnOnce(&[Op<'a>]) -> Op<'a>,
        body: impl for<'a> FnOnce(&[Op<'a>]) -> Vec<Op<'a>>,
    ) -> Vec<Op<'g>> {
        self.turns(1, state, condition, body)
    }

    #[track_caller]
    fn turns<'g>(
        &'g self,
        times: i64,
        state: &[Op<'g>],
        condition: impl for<'a> FnOnce(&[Op<'a>]) -> Op<'a>,
        body: impl for<'a> FnOnce(&[Op<'a>]) -> Vec<Op<'a>>,
    ) -> Vec<Op<'g>> {
        let shapes: Vec<Shape> = state.iter().map(|op| op.shape()).collect();
        let condition = self.tuple_computation("condition", &shapes, |_, s| vec![condition(s)], false);
        let body = self.tuple_computation("body", &shapes, |_, s| body(s), true);
        if body.results != shapes || condition.results != [Shape::new(DType::Pred, [])] {
            self.fail("while", "the condition must return pred[], the body the state's shapes".into(), state);
            return state.to_vec();
        }
        let tuple = self.tuple(state);
        let attributes = Attributes::While { condition: condition.index, body: body.index, times };
        self.push("while", Type::Tuple(shapes), &[tuple], attributes).elements()
    }

    /// The branch of number `index` (`s32[]`; the last one if it is out of range), each with its own operands.
    #[track_caller]
    pub fn conditional<'g>(&'g self, index: Op<'g>, branches: &[(&Computation, &[Op<'g>])]) -> Vec<Op<'g>> {
        let results = branches[0].0.results.clone();
        let mut operands = vec![index];
        for (computation, arguments) in branches {
            let given: Vec<Shape> = arguments.iter().map(|op| op.shape()).collect();
            if computation.results != results || computation.parameters != given || index.shape().dtype != DType::S32 {
                let message = "takes an s32 index, and branches that take their operands and return the same".into();
                self.fail("conditional", message, arguments);
                return vec![index];
            }
            operands.push(self.tuple(arguments));
        }
        // Each branch of HLO takes one operand: a tuple that the computation takes apart.
        let wrap = |(computation, _): &(&Computation, &[Op<'g>])| {
            self.tuple_computation("branch", &computation.parameters, |g, p| g.call(computation, p), true).index
        };
        let branches = branches.iter().map(wrap).collect();
        self.push("conditional", Type::Tuple(results), &operands, Attributes::Conditional { branches }).elements()
    }

    /// Calls a computation.
    #[track_caller]
    pub fn call<'g>(&'g self, computation: &Computation, arguments: &[Op<'g>]) -> Vec<Op<'g>> {
        let given: Vec<Shape> = arguments.iter().map(|op| op.shape()).collect();
        if given != computation.parameters {
            let wanted: Vec<String> = computation.parameters.iter().map(ToString::to_string).collect();
            self.fail("call", format!("the computation takes {}", wanted.join(", ")), arguments);
        }
        let ty = Type::Tuple(computation.results.clone());
        self.push("call", ty, arguments, Attributes::Call { apply: computation.index }).elements()
    }

    /// Calls a typed-FFI handler that the plugin knows as `target`. `attributes` are 64-bit integers.
    #[track_caller]
    pub fn custom_call<'g>(
        &'g self,
        target: &str,
        operands: &[Op<'g>],
        results: &[Shape],
        attributes: &[(&str, i64)],
    ) -> Vec<Op<'g>> {
        let entries: Vec<String> = attributes.iter().map(|(name, value)| format!("{name} = {value} : i64")).collect();
        let config = format!("{{{}}}", entries.join(", "));
        let ty = if let [one] = results { Type::Array(one.clone()) } else { Type::Tuple(results.to_vec()) };
        let attributes = Attributes::CustomCall { target: target.to_owned(), config, is_ffi: true };
        self.push("custom-call", ty, operands, attributes).elements()
    }
}

impl Op<'_> {
    /// The same, in row-major order in memory: keeps XLA from laying out what it comes from in another way.
    #[track_caller]
    pub fn row_major(self) -> Self {
        let (target, config) = ("LayoutConstraint".to_owned(), String::new());
        let attributes = Attributes::CustomCall { target, config, is_ffi: false };
        self.graph().push("custom-call", Type::Array(self.shape()), &[self], attributes)
    }
}
