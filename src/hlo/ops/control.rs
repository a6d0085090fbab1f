//! Control flow, calls, and calls of functions outside the program.

use crate::hlo::{Computation, DType, Graph, Op, Shape, Tree, Type, instruction::Attributes};

impl Graph {
    /// Runs `body` `times` times on the state. It is given the number of runs before (`s32[]`).
    #[track_caller]
    pub fn repeat<'g, T: Tree<'g>>(
        &'g self,
        times: i64,
        state: &T,
        body: impl for<'b> FnOnce(Op<'b>, T::In<'b>) -> T::In<'b>,
    ) -> T::In<'g> {
        self.while_loop(times, self.s32(times), state, None::<for<'b> fn(Op<'b>, T::In<'b>) -> Op<'b>>, body)
    }

    /// As [`Self::repeat`], as often as `times` (`s32[]`) says when the program runs.
    #[track_caller]
    pub fn repeat_dynamic<'g, T: Tree<'g>>(
        &'g self,
        times: Op<'g>,
        state: &T,
        body: impl for<'b> FnOnce(Op<'b>, T::In<'b>) -> T::In<'b>,
    ) -> T::In<'g> {
        self.while_loop(1, times, state, None::<for<'b> fn(Op<'b>, T::In<'b>) -> Op<'b>>, body)
    }

    /// As [`Self::repeat_dynamic`], while `condition` (`pred[]`) holds of the state.
    #[track_caller]
    pub fn repeat_while<'g, T: Tree<'g>>(
        &'g self,
        times: Op<'g>,
        state: &T,
        condition: impl for<'b> FnOnce(Op<'b>, T::In<'b>) -> Op<'b>,
        body: impl for<'b> FnOnce(Op<'b>, T::In<'b>) -> T::In<'b>,
    ) -> T::In<'g> {
        self.while_loop(1, times, state, Some(condition), body)
    }

    /// HLO's while, on an index, the number of times, and the state. `known` is how often the body
    /// runs, as far as it is known: what is in it is counted so often.
    #[track_caller]
    fn while_loop<'g, T: Tree<'g>>(
        &'g self,
        known: i64,
        times: Op<'g>,
        state: &T,
        condition: Option<impl for<'b> FnOnce(Op<'b>, T::In<'b>) -> Op<'b>>,
        body: impl for<'b> FnOnce(Op<'b>, T::In<'b>) -> T::In<'b>,
    ) -> T::In<'g> {
        let leaves: Vec<Op<'g>> = [self.s32(0), times].into_iter().chain(state.flatten()).collect();
        let shapes: Vec<Shape> = leaves.iter().map(|op| op.shape()).collect();
        let condition = {
            let (graph, all) = self.tuple_graph("condition", &shapes);
            let root = {
                let s = graph.op(all).elements();
                let is_before = s[0].lt(s[1]);
                let root = match condition {
                    None => is_before,
                    Some(holds) => is_before.and(holds(s[0], state.rebuild(&mut s[2..].iter().copied()))),
                };
                root.index
            };
            graph.close(root, shapes.clone(), vec![Shape::new(DType::Pred, [])])
        };
        let body = {
            let (graph, all) = self.tuple_graph("body", &shapes);
            let (root, results) = {
                let s = graph.op(all).elements();
                let new = body(s[0], state.rebuild(&mut s[2..].iter().copied()));
                let roots: Vec<Op<'_>> = [s[0] + 1, s[1]].into_iter().chain(new.flatten()).collect();
                (graph.tuple(&roots).index, roots.iter().map(|op| op.shape()).collect::<Vec<_>>())
            };
            graph.close(root, shapes.clone(), results)
        };
        if body.results != shapes {
            self.fail("while", "the body must return the state's shapes".into(), &leaves);
            return state.rebuild(&mut leaves.into_iter().skip(2));
        }
        let tuple = self.tuple(&leaves);
        let attributes = Attributes::While { condition: condition.index, body: body.index, times: known };
        let out = self.push("while", Type::Tuple(shapes), &[tuple], attributes).elements();
        state.rebuild(&mut out.into_iter().skip(2))
    }

    /// The branch of number `index` (`s32[]`; the last one if it is out of range), each with its
    /// own operands.
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
            let (graph, all) = self.tuple_graph("branch", &computation.parameters);
            let out = graph.call(computation, &graph.op(all).elements());
            let root = graph.tuple(&out).index;
            graph.close(root, computation.parameters.clone(), computation.results.clone()).index
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

    /// Calls a typed-FFI handler that the plugin knows as `target`. `attributes` are 64-bit
    /// integers. `aliases` are pairs of a result and an operand that share their memory: the
    /// handler updates the operand in place.
    #[track_caller]
    pub fn custom_call<'g>(
        &'g self,
        target: &str,
        operands: &[Op<'g>],
        results: &[Shape],
        attributes: &[(&str, i64)],
        aliases: &[(usize, usize)],
    ) -> Vec<Op<'g>> {
        for &(result, operand) in aliases {
            if results.get(result) != operands.get(operand).map(|op| op.shape()).as_ref() {
                let message =
                    format!("result {result} cannot reuse the memory of operand {operand}: the shapes differ");
                self.fail("custom-call", message, operands);
            }
        }
        let entries: Vec<String> = attributes.iter().map(|(name, value)| format!("{name} = {value} : i64")).collect();
        let config = format!("{{{}}}", entries.join(", "));
        let ty = if let [one] = results { Type::Array(one.clone()) } else { Type::Tuple(results.to_vec()) };
        let attributes =
            Attributes::CustomCall { target: target.to_owned(), config, is_ffi: true, aliases: aliases.to_vec() };
        self.push("custom-call", ty, operands, attributes).elements()
    }
}

impl Op<'_> {
    /// The same, in row-major order in memory: keeps XLA from laying out what it comes from in
    /// another way.
    #[track_caller]
    pub fn row_major(self) -> Self {
        let (target, config) = ("LayoutConstraint".to_owned(), String::new());
        let attributes = Attributes::CustomCall { target, config, is_ffi: false, aliases: vec![] };
        self.graph().push("custom-call", Type::Array(self.shape()), &[self], attributes)
    }
}
