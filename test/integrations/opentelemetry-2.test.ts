/** holdfast/opentelemetry with the second generation of the SDK. */
import { start } from '../../tools/opentelemetry-2/sdk.ts';
import { promises } from './support/opentelemetry.ts';

promises('SDK 2', start);
