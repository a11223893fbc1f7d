/**
 * Exact math: logarithm and exponential, computed with the four basic operations only.
 *
 * Promise: the same bits on every machine and engine. IEEE 754 fixes +, -, *, / and the square root to the last bit; `Math.log` and `Math.exp` are left to
 * the engine, and a single bit can change the course of a simulation.
 * After: Muller, "Elementary Functions", ch. 3 (argument reduction and series). Error below 1e-14, relative.
 */

const seriesTerms = 16;

/** Natural logarithm of a positive number. */
export function exactLn(value: number): number {
  let mantissa = value;
  let exponent = 0;
  for (; mantissa > 1.5; mantissa /= 2) exponent++;
  for (; mantissa < 0.75; mantissa *= 2) exponent--;
  // ln m = 2 artanh((m - 1) / (m + 1)), and the quotient is at most 1/5 here.
  const quotient = (mantissa - 1) / (mantissa + 1);
  const square = quotient * quotient;
  let sum = 0;
  for (let term = seriesTerms; term >= 0; term--) sum = sum * square + 1 / (2 * term + 1);
  return exponent * Math.LN2 + 2 * quotient * sum;
}

/** e to the power of a number up to 700. */
export function exactExp(power: number): number {
  // Less than the smallest double. Halving as often as that would take for ever where the power is very small.
  if (power < -800) return 0;
  const halvings = Math.round(power / Math.LN2);
  const rest = power - halvings * Math.LN2;
  let sum = 1;
  for (let term = seriesTerms; term >= 1; term--) sum = 1 + (sum * rest) / term;
  let result = sum;
  for (let count = Math.abs(halvings); count > 0; count--) result = halvings > 0 ? result * 2 : result / 2;
  return result;
}
