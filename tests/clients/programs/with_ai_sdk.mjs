// Vercel's AI SDK: its OpenAI provider's chat model, and the one for compatible servers.

import assert from "node:assert";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  generateObject,
  generateText,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

const { OPENAI_BASE_URL: baseURL, OPENAI_API_KEY: apiKey } = process.env;
const compatible = createOpenAICompatible({
  name: "kvbranch",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
})("kvllama");
const openai = createOpenAI({ baseURL, apiKey }).chat("kvllama");
const models = [compatible, openai];

const prompt = "How is the weather in Paris, the capital of France?";
const City = z.object({ city: z.string(), country: z.string() });
const get_weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => "It rains.",
});
const get_time = tool({
  description: "The time in a time zone",
  inputSchema: z.object({ zone: z.string() }),
  execute: async () => "Noon.",
});
const tools = { get_weather, get_time };

export async function required_tool() {
  for (const model of models) {
    const result = await generateText({
      model,
      prompt,
      tools,
      toolChoice: "required",
      maxRetries: 0,
    });
    assert(result.toolCalls.length > 0);
    assert(result.toolCalls.every((call) => call.toolName in tools && !call.invalid));
    assert.equal(result.finishReason, "tool-calls");
    assert.equal(result.toolResults.length, result.toolCalls.length);
  }
}

export async function named_tool() {
  for (const model of models) {
    const result = await generateText({
      model,
      prompt,
      tools,
      toolChoice: { type: "tool", toolName: "get_time" },
      maxRetries: 0,
    });
    assert(result.toolCalls.length > 0);
    assert(result.toolCalls.every((call) => call.toolName === "get_time"));
    assert.equal(typeof result.toolCalls[0].input.zone, "string");
  }
}

export async function streamed_tool() {
  for (const model of models) {
    const result = streamText({
      model,
      prompt,
      tools,
      toolChoice: "required",
      maxRetries: 0,
    });
    const kinds = new Set();
    for await (const part of result.fullStream) {
      if (part.type === "error") throw part.error;
      kinds.add(part.type);
    }
    for (const kind of ["tool-input-start", "tool-input-delta", "tool-call"])
      assert(kinds.has(kind), kind);
    assert(!kinds.has("tool-error"));
    assert.equal(await result.finishReason, "tool-calls");
    assert((await result.usage).outputTokens > 0);
  }
}

export async function tool_of_its_own_choice() {
  for (const model of models) {
    const asked = { model, tools, stopWhen: stepCountIs(3), maxRetries: 0 };
    const weather = "How is the weather in Paris?";
    const whole = await generateText({ ...asked, prompt: weather });
    const streamed = streamText({ ...asked, prompt: weather });
    for (const result of [whole, streamed]) {
      assert.match(await result.text, /It rains/);
      const steps = await result.steps;
      assert.equal(steps.length, 2);
      assert.deepEqual(steps[0].toolCalls[0].input, { city: "Paris" });
    }
  }
}

export async function tools_in_steps() {
  for (const model of models) {
    const result = await generateText({
      model,
      prompt,
      tools,
      stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => ({
        toolChoice: stepNumber === 0 ? "required" : "none",
      }),
      maxRetries: 0,
    });
    assert.equal(result.steps.length, 2);
    assert(result.steps[0].toolCalls.length > 0);
    assert(result.text);
  }
}

export async function object() {
  for (const model of models) {
    const result = await generateObject({ model, prompt, schema: City, maxRetries: 0 });
    City.parse(result.object);
  }
}

export async function streamed_object() {
  for (const model of models) {
    const result = streamObject({ model, prompt, schema: City, maxRetries: 0 });
    let last;
    for await (const part of result.partialObjectStream) last = part;
    City.parse(last);
    City.parse(await result.object);
  }
}

export async function array_and_enum() {
  const colour = await generateObject({
    model: compatible,
    output: "enum",
    enum: ["red", "green"],
    prompt: "Which colour has grass?",
    maxRetries: 0,
  });
  assert(["red", "green"].includes(colour.object));
}

export async function refusal_of_an_unknown_tool() {
  for (const model of models) {
    const asked = { model, prompt, tools: { get_weather }, maxRetries: 0 };
    const toolChoice = { type: "tool", toolName: "get_news" };
    await assert.rejects(generateText({ ...asked, toolChoice }), (error) => {
      assert(APICallError.isInstance(error));
      assert.equal(error.statusCode, 400);
      assert.match(error.message, /get_news/);
      assert(!error.message.includes("\n"));
      return true;
    });
  }
}
