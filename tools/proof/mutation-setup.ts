/** A mutation run only asks whether a test fails, so the smallest failing case is not searched for. */
import fc from 'fast-check';

fc.configureGlobal({ endOnFailure: true });
