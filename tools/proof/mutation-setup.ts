/** That a breakage is noticed is all that a mutation run asks: the smallest case of it is not looked for. */
import fc from 'fast-check';

fc.configureGlobal({ endOnFailure: true });
