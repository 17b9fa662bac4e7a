//! Trees of operations on numbers, drawn at random and written with the brackets that they need: what brackets and
//! countdown problems are made of.

use super::generated::Draws;

/// A number, or an operation on two expressions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    Number(i64),
    Operation { left: Box<Expression>, operator: char, right: Box<Expression> },
}

impl Expression {
    /// A tree of any shape over `numbers` from left to right, which must not be empty.
    pub fn draw(numbers: &[i64], operators: &[char], draws: &mut Draws) -> Expression {
        if let [number] = numbers {
            return Expression::Number(*number);
        }
        let split = 1 + draws.below(numbers.len() as u64 - 1) as usize;
        let operator = draws.pick(operators);
        Expression::Operation {
            left: Box::new(Expression::draw(&numbers[..split], operators, draws)),
            operator,
            right: Box::new(Expression::draw(&numbers[split..], operators, draws)),
        }
    }

    fn precedence(&self) -> u8 {
        match self {
            Expression::Number(_) => 3,
            Expression::Operation { operator: '*' | '/', .. } => 2,
            Expression::Operation { .. } => 1,
        }
    }

    /// As text from which the tree can be read back: a right operand of the same precedence keeps its brackets.
    pub fn text(&self) -> String {
        match self {
            Expression::Number(number) => number.to_string(),
            Expression::Operation { left, operator, right } => {
                let own = self.precedence();
                let bracketed = |e: &Expression, open: bool| if open { format!("({})", e.text()) } else { e.text() };
                let (left, right) =
                    (bracketed(left, left.precedence() < own), bracketed(right, right.precedence() <= own));
                format!("{left}{operator}{right}")
            }
        }
    }

    /// The value, operands before operations and left before right. `write` gets each operation with its operands as
    /// they were written, and says what is written for its result; none ends the work.
    pub fn work(&self, write: &mut dyn FnMut(i64, char, i64) -> Option<i64>) -> Option<i64> {
        match self {
            Expression::Number(number) => Some(*number),
            Expression::Operation { left, operator, right } => {
                let (left, right) = (left.work(write)?, right.work(write)?);
                write(left, *operator, right)
            }
        }
    }

    /// Every operator may become another: `change` says which.
    pub fn with_operators(&self, change: &mut dyn FnMut(char) -> char) -> Expression {
        match self {
            Expression::Number(_) => self.clone(),
            Expression::Operation { left, operator, right } => Expression::Operation {
                left: Box::new(left.with_operators(change)),
                operator: change(*operator),
                right: Box::new(right.with_operators(change)),
            },
        }
    }
}

/// A whole result from 0 to `most`; none for anything else, division with a remainder and by zero included.
pub fn apply(left: i64, operator: char, right: i64, most: i64) -> Option<i64> {
    let result = match operator {
        '+' => left.checked_add(right)?,
        '-' => left.checked_sub(right)?,
        '*' => left.checked_mul(right)?,
        _ => (right != 0 && left % right == 0).then(|| left / right)?,
    };
    (0..=most).contains(&result).then_some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: i64) -> Box<Expression> {
        Box::new(Expression::Number(n))
    }

    #[test]
    fn brackets_stand_where_the_tree_needs_them() {
        let sum = Box::new(Expression::Operation { left: number(1), operator: '+', right: number(2) });
        let product = |left, right| Expression::Operation { left, operator: '*', right };
        let minus = |left, right| Expression::Operation { left, operator: '-', right };
        assert_eq!(product(sum.clone(), number(3)).text(), "(1+2)*3");
        assert_eq!(minus(number(3), sum.clone()).text(), "3-(1+2)");
        assert_eq!(minus(sum.clone(), number(3)).text(), "1+2-3");
        assert_eq!(minus(number(9), Box::new(product(number(2), number(3)))).text(), "9-2*3");
        let mut steps = Vec::new();
        let value = minus(number(9), sum).work(&mut |a, o, b| {
            steps.push(format!("{a}{o}{b}"));
            apply(a, o, b, 99)
        });
        assert_eq!((value, steps.join(" ")), (Some(6), "1+2 9-3".into()));
    }

    #[test]
    fn results_outside_of_the_bounds_are_none() {
        assert_eq!(apply(7, '/', 2, 99), None);
        assert_eq!(apply(7, '/', 0, 99), None);
        assert_eq!(apply(8, '/', 2, 99), Some(4));
        assert_eq!(apply(1, '-', 2, 99), None);
        assert_eq!(apply(50, '*', 2, 99), None);
        assert_eq!(apply(i64::MAX, '*', 2, i64::MAX), None);
    }
}
