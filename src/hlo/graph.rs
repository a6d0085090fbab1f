//! Graphs under construction: computations, the ops in them, and the first mistake.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    panic::Location,
    rc::Rc,
};

use super::{
    DType, HloError, Literal, Module, Shape, Type,
    instruction::{Attributes, ComputationData, Instruction},
};

/// State shared by all computations of a module.
#[derive(Default)]
pub(super) struct Shared {
    pub computations: RefCell<Vec<ComputationData>>,
    /// Scalar functions by name and parameter types.
    functions: RefCell<HashMap<(String, Vec<DType>), usize>>,
    next_id: Cell<i64>,
    error: RefCell<Option<HloError>>,
}

impl Shared {
    fn next_id(&self) -> i64 {
        self.next_id.set(self.next_id.get() + 1);
        self.next_id.get()
    }
}

/// A computation under construction. The one made by [`Graph::new`] becomes the module's entry.
pub struct Graph {
    pub(super) name: String,
    pub(super) id: i64,
    pub(super) shared: Rc<Shared>,
    pub(super) instructions: RefCell<Vec<Instruction>>,
    parameters: Cell<usize>,
    scopes: RefCell<Vec<String>>,
    aliases: RefCell<Vec<(usize, usize)>>,
}

/// A value in a [`Graph`].
#[derive(Clone, Copy)]
pub struct Op<'g> {
    pub(super) graph: &'g Graph,
    pub(super) index: usize,
}

/// A finished sub-computation, to be called.
#[derive(Clone, Debug)]
pub struct Computation {
    pub(super) index: usize,
    pub(super) parameters: Vec<Shape>,
    pub(super) results: Vec<Shape>,
}

/// Ends a scope when dropped, see [`Graph::scope`].
pub struct Scope<'g>(&'g Graph);

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.0.scopes.borrow_mut().pop();
    }
}

impl Graph {
    /// A new module of this name, which names its entry computation too.
    pub fn new(name: &str) -> Self {
        Self::with_shared(name, Rc::new(Shared::default()))
    }

    fn with_shared(name: &str, shared: Rc<Shared>) -> Self {
        Self {
            name: name.to_owned(),
            id: shared.next_id(),
            shared,
            instructions: RefCell::new(Vec::new()),
            parameters: Cell::new(0),
            scopes: RefCell::new(Vec::new()),
            aliases: RefCell::new(Vec::new()),
        }
    }

    /// Ops made while the result lives carry `name` in their metadata's op_name; scopes nest.
    pub fn scope(&self, name: &str) -> Scope<'_> {
        self.scopes.borrow_mut().push(name.to_owned());
        Scope(self)
    }

    /// The next parameter.
    #[track_caller]
    pub fn parameter(&self, name: &str, shape: Shape) -> Op<'_> {
        let number = self.parameters.get();
        self.parameters.set(number + 1);
        let op = self.push("parameter", Type::Array(shape), &[], Attributes::Parameter { number });
        self.instructions.borrow_mut()[op.index].name = sanitize(name);
        op
    }

    /// A constant array.
    #[track_caller]
    pub fn constant(&self, literal: Literal) -> Op<'_> {
        self.push("constant", Type::Array(literal.shape.clone()), &[], Attributes::Constant(literal))
    }

    /// Makes output `output` of the entry computation reuse the memory of `parameter`, if the
    /// caller donates it.
    #[track_caller]
    pub fn alias(&self, parameter: Op<'_>, output: usize) {
        let found = match &self.instructions.borrow()[parameter.index].attributes {
            Attributes::Parameter { number } => Some(*number),
            _ => None,
        };
        match found {
            Some(number) => self.aliases.borrow_mut().push((number, output)),
            None => self.fail("alias", "only a parameter can be aliased to an output".into(), &[parameter]),
        }
    }

    /// Builds a sub-computation with these parameters: names and shapes.
    #[track_caller]
    pub fn computation(
        &self,
        name: &str,
        parameters: &[(&str, Shape)],
        body: impl for<'a> FnOnce(&'a Graph, &[Op<'a>]) -> Vec<Op<'a>>,
    ) -> Computation {
        let graph = Graph::with_shared(name, self.shared.clone());
        let ops: Vec<Op<'_>> = parameters.iter().map(|(name, shape)| graph.parameter(name, shape.clone())).collect();
        let roots = body(&graph, &ops);
        let results: Vec<Shape> = roots.iter().map(|op| op.shape()).collect();
        let root = graph.tuple(&roots).index;
        graph.close(root, parameters.iter().map(|(_, shape)| shape.clone()).collect(), results)
    }

    /// A function of scalars, for reductions and sorts: its index among the module's computations.
    /// Functions of one name and one list of types are one computation, built when it is first
    /// needed.
    #[track_caller]
    pub(super) fn scalar_function(
        &self,
        name: &str,
        types: &[DType],
        body: impl for<'a> FnOnce(&[Op<'a>]) -> Vec<Op<'a>>,
    ) -> usize {
        let key = (name.to_owned(), types.to_vec());
        if let Some(&index) = self.shared.functions.borrow().get(&key) {
            return index;
        }
        let graph = Graph::with_shared(name, self.shared.clone());
        let shapes: Vec<Shape> = types.iter().map(|&dtype| Shape::scalar(dtype)).collect();
        let ops: Vec<Op<'_>> =
            shapes.iter().enumerate().map(|(i, s)| graph.parameter(&format!("p{i}"), s.clone())).collect();
        let roots = body(&ops);
        let results: Vec<Shape> = roots.iter().map(|op| op.shape()).collect();
        let root = if let [one] = roots[..] { one.index } else { graph.tuple(&roots).index };
        let index = graph.close(root, shapes, results).index;
        self.shared.functions.borrow_mut().insert(key, index);
        index
    }

    /// Begins a sub-computation whose one parameter is a tuple, which is how loops and branches
    /// take their state. Returns it with the parameter's index.
    #[track_caller]
    pub(super) fn tuple_graph(&self, name: &str, state: &[Shape]) -> (Graph, usize) {
        let graph = Graph::with_shared(name, self.shared.clone());
        graph.parameters.set(1);
        let all = graph.push("parameter", Type::Tuple(state.to_vec()), &[], Attributes::Parameter { number: 0 }).index;
        graph.instructions.borrow_mut()[all].name = "state".into();
        (graph, all)
    }

    /// The value of an instruction.
    pub(super) fn op(&self, index: usize) -> Op<'_> {
        Op { graph: self, index }
    }

    /// Ends a sub-computation.
    pub(super) fn close(self, root: usize, parameters: Vec<Shape>, results: Vec<Shape>) -> Computation {
        let Graph { name, id, shared, instructions, .. } = self;
        let instructions = instructions.into_inner();
        let mut computations = shared.computations.borrow_mut();
        computations.push(ComputationData { id, name: format!("{name}.{id}"), instructions, root });
        Computation { index: computations.len() - 1, parameters, results }
    }

    /// Ends the module. Its outputs are `outputs`, in a tuple. The graph is empty afterwards.
    ///
    /// # Errors
    /// The first mistake that was made in it.
    #[track_caller]
    pub fn finish(&self, outputs: &[Op<'_>]) -> Result<Module, HloError> {
        let shapes: Vec<Shape> = outputs.iter().map(|op| op.shape()).collect();
        let root = self.tuple(outputs).index;
        let aliases = self.aliases.take();
        for &(parameter, output) in &aliases {
            self.check_alias(parameter, &shapes, output);
        }
        if let Some(error) = self.shared.error.take() {
            return Err(error);
        }
        let entry =
            ComputationData { id: self.id, name: self.name.clone(), instructions: self.instructions.take(), root };
        let mut computations = self.shared.computations.take();
        computations.push(entry);
        Ok(Module { name: self.name.clone(), computations, outputs: shapes, aliases })
    }

    fn check_alias(&self, parameter: usize, outputs: &[Shape], output: usize) {
        let instructions = self.instructions.borrow();
        let index = instructions
            .iter()
            .position(|i| matches!(i.attributes, Attributes::Parameter { number } if number == parameter))
            .expect("alias() took the number from a parameter");
        let fits = matches!(&instructions[index].ty, Type::Array(shape) if outputs.get(output) == Some(shape));
        drop(instructions);
        if !fits {
            let found = outputs.get(output).map_or("none".to_owned(), ToString::to_string);
            let message = format!("output {output} ({found}) cannot reuse the memory of parameter {parameter}");
            self.fail("alias", message, &[Op { graph: self, index }]);
        }
    }

    /// Adds an instruction. Shapes were checked by the caller.
    #[track_caller]
    pub(super) fn push(&self, opcode: &'static str, ty: Type, operands: &[Op<'_>], attributes: Attributes) -> Op<'_> {
        if operands.iter().any(|op| !std::ptr::eq(op.graph, self)) {
            let message = "an operand belongs to another computation; pass it in as a parameter or loop state";
            self.fail(opcode, message.into(), operands);
        }
        let mut instructions = self.instructions.borrow_mut();
        instructions.push(Instruction {
            id: self.shared.next_id(),
            opcode,
            name: opcode.to_owned(),
            ty,
            operands: operands.iter().map(|op| op.index).collect(),
            attributes,
            scope: self.scopes.borrow().join("/"),
            location: Location::caller(),
        });
        Op { graph: self, index: instructions.len() - 1 }
    }

    /// Keeps the first mistake.
    #[track_caller]
    pub(super) fn fail(&self, op: &str, message: String, operands: &[Op<'_>]) {
        let mut error = self.shared.error.borrow_mut();
        if error.is_none() {
            let operands: Vec<String> = operands.iter().map(|op| op.ty().to_string()).collect();
            let operands = if operands.is_empty() { "none".into() } else { operands.join(", ") };
            *error = Some(HloError { op: op.to_owned(), message, operands, location: Location::caller() });
        }
    }

    /// Keeps the mistake, and returns a stand-in of this shape so that building can go on.
    #[track_caller]
    pub(super) fn reject(&self, op: &str, message: String, operands: &[Op<'_>], stand_in: Shape) -> Op<'_> {
        self.fail(op, message, operands);
        self.push("parameter", Type::Array(stand_in), &[], Attributes::None)
    }
}

impl<'g> Op<'g> {
    /// The graph that this value belongs to.
    pub fn graph(self) -> &'g Graph {
        self.graph
    }

    /// The value's type.
    pub fn ty(self) -> Type {
        self.graph.instructions.borrow()[self.index].ty.clone()
    }

    /// The array's shape. A tuple has none: that is kept as a mistake.
    #[track_caller]
    pub fn shape(self) -> Shape {
        match self.ty() {
            Type::Array(shape) => shape,
            Type::Tuple(_) => {
                self.graph.fail("shape", "a tuple was used as an array".into(), &[self]);
                Shape::scalar(DType::F32)
            }
        }
    }

    /// Size of dimension `dim`, counted from the end if negative. 0, and a kept mistake, if there
    /// is none.
    #[track_caller]
    pub fn dim(self, dim: i64) -> i64 {
        let dims = self.shape().dims;
        let index = if dim < 0 { dim + dims.len() as i64 } else { dim };
        match usize::try_from(index).ok().and_then(|i| dims.get(i)) {
            Some(&size) => size,
            None => {
                self.graph.fail("dim", format!("there is no dimension {dim}"), &[self]);
                0
            }
        }
    }
}

/// Names of parameters in HLO: letters, digits, `.`, `_` and `-`.
fn sanitize(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect()
}
