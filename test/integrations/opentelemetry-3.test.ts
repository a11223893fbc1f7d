/** holdfast/opentelemetry with the third generation of the SDK. */
import { start } from '../../tools/opentelemetry-3/sdk.ts';
import { promises } from './support/opentelemetry.ts';

promises('SDK 3', start);
